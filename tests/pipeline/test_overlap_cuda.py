"""Races between lanes, on a GPU: overlapped and serialised runs have the same bits."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from hcmegatron.platform.ranks import free_port
from hcmegatron.platform.sdpa import disable_persistent_sdpa
from tests.pipeline.cuda_run import CASES

ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}


def runs(directory, case, steps):
    """Of the overlapped and the serialised run: loss and gradient norm per step; digests of weights."""
    found = []
    for name in ("overlap", "serialised"):
        command = [
            sys.executable,
            "-m",
            "tests.pipeline.cuda_run",
            str(directory / name),
            case,
            name,
            str(steps),
        ]
        env = {
            **os.environ,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            **ALONE,
            "MASTER_PORT": str(free_port()),
        }
        subprocess.run(command, env=env, check=True, timeout=900)
        lines = [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]
        metrics = [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]
        found.append((metrics, json.loads((directory / name / "weights.json").read_text())))
    return found


def check(both, steps):
    (overlapped, weights), (serialised, expected) = both
    assert len(overlapped) == steps
    assert overlapped == serialised
    assert weights.keys() == {"0", "1"}
    assert all(len(stage) > 30 for stage in weights.values())
    for stage, digests in weights.items():
        assert not [name for name, bits in digests.items() if bits != expected[stage][name]], stage


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: lanes are streams only there")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(1900)
def test_overlapped_and_serialised_runs_are_equal_over_200_steps(case, tmp_path):
    check(runs(tmp_path, case, 200), 200)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: it has the kernels in question")
def test_no_attention_kernel_is_persistent(tmp_path):
    """Blocks of every attention kernel, where there are tiles for many times the SMs: a persistent one has no more
    than fit at once."""
    disable_persistent_sdpa()
    shape = (8, 32, 2048, 128)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        torch.cuda.synchronize()
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    kernels = {
        event["name"]: math.prod(event["args"]["grid"])
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if event.get("cat") == "kernel" and re.search("flash|fmha|attention", event["name"])
    }
    assert len(kernels) >= 2, "forward and backward"
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    assert all(blocks > 4 * sms for blocks in kernels.values()), kernels


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which runs the whole of it")
def test_the_runs_that_are_compared_on_a_gpu_run(tmp_path):
    """Two steps on CPU of what a GPU runs for 200: the comparison sees weights and metrics."""
    check(runs(tmp_path, "all-to-all", 2), 2)
