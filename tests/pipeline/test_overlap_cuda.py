"""Races between lanes, on a GPU: overlapped and serialised runs have the same bits."""

import json
import os
import subprocess
import sys

import pytest
import torch

ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29577",
}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: lanes are streams only there")
def test_overlapped_and_serialised_runs_are_equal_over_200_steps(tmp_path):
    runs = {}
    for name in ("overlap", "serialised"):
        command = [sys.executable, "-m", "tests.pipeline.cuda_run", str(tmp_path / name), name]
        env = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **ALONE}
        subprocess.run(command, env=env, check=True, timeout=900)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs[name] = [
            (line["step"], line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line
        ]
    assert len(runs["overlap"]) == 200
    assert runs["overlap"] == runs["serialised"]
