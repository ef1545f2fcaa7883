"""What CUDA reads when it starts: set where unset, left where set, said, and warned of."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import read_config
from hcmegatron.config.schema import Parallel
from hcmegatron.pipeline.cuda_streams import check_channels, receives, streams, warnings
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.planner.hops import pipeline_costs
from hcmegatron.platform import cuda_environment

ROOT = Path(__file__).parents[2]


def test_what_is_unset_is_set_and_what_is_set_stays():
    values = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "HOME": "/"}
    cuda_environment.prepare(values)
    assert values == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "CUDA_MODULE_LOADING": "EAGER",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "HOME": "/",
    }
    own = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}
    cuda_environment.prepare(own)
    assert own["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "7" and "TORCH_FR_BUFFER_SIZE" not in own
    line = cuda_environment.described(values)
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1 (not 32: a queue for every stream)" in line
    assert "CUDA_MODULE_LOADING=EAGER, " in line and "\n" not in line


def test_it_is_set_before_anything_asks_for_cuda():
    """In a process of its own, where the first question comes from this project's import."""
    program = (
        "import os, torch\n"
        "usual, seen = torch.cuda.is_available, []\n"
        "def asked():\n"
        "    seen.append(os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS'))\n"
        "    return usual()\n"
        "torch.cuda.is_available = asked\n"
        "import hcmegatron.training.run\n"
        "assert seen and set(seen) == {'32'}, seen\n"
    )
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=clean, check=True, timeout=120)


def layout_for(schedule, pipeline, virtual=None, overlap=False):
    return Parallel(schedule=schedule, pipeline=pipeline, virtual=virtual, overlap=overlap)


def test_the_streams_of_a_rank():
    megatrons = 4
    assert streams(layout_for("1f1b", 2)) == 1 + 2 + megatrons
    assert streams(layout_for("1f1b", 4)) == 1 + 4 + megatrons
    assert streams(layout_for("dualpipev", 4, overlap=True)) == 1 + 2 + 8 + megatrons
    assert streams(layout_for("interleaved", 4, 3)) == 1 + 12 + megatrons


def test_few_queues_are_a_loud_warning_where_our_runtime_runs():
    overlapped = layout_for("dualpipev", 4, overlap=True)
    for value in ("1", "8", "14"):
        (line,) = warnings(overlapped, {"CUDA_DEVICE_MAX_CONNECTIONS": value})
        assert line.startswith(f"WARNING: CUDA_DEVICE_MAX_CONNECTIONS={value}, ") and "15 streams" in line
        assert "set it to 32" in line
    assert warnings(overlapped, {}), "8 is CUDA's default"
    assert not warnings(overlapped, {"CUDA_DEVICE_MAX_CONNECTIONS": "32"})
    assert not warnings(layout_for("interleaved", 4, 8), {"CUDA_DEVICE_MAX_CONNECTIONS": "32"})
    assert not warnings(layout_for("megatron_1f1b", 4), {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})


def test_more_channels_than_streams_are_refused():
    check_channels(layout_for("interleaved", 4, 8))
    with pytest.raises(ConfigError, match=r"parallel.virtual = 9.*36 channels.*parallel.virtual = 8 or less"):
        check_channels(layout_for("interleaved", 4, 9))


def test_how_early_receives_are_posted_is_said_with_what_it_follows_from():
    """The 27B model, by hand: 4096 tokens of 4 x 2560 numbers of 2 bytes in 2.1 ms at 40 GB/s."""
    config, _ = read_config(
        ROOT / "configs" / "mhc-27b.yaml", ["--parallel.pipeline=4", "--parallel.schedule=dualpipev"]
    )
    costs = pipeline_costs(config, 8)
    (said,) = receives(config, costs, 16, 1)
    assert said == (
        "receives are posted 1 action ahead: a hop takes 0.18 of a stage's forward, by estimate (40 GB/s, 396 TFLOP/s)"
    )
    tokens = config.training.micro_batch * config.data.sequence_length
    forward = tokens * training_flops_per_token(config, 0) / 3 / 8 / 395.6e12
    assert costs.link.latency * forward == pytest.approx(tokens * 4 * 2560 * 2 / 40e9)
    small, _ = read_config(
        ROOT / "configs" / "quickstart.yaml",
        ["--parallel.pipeline=4", "--parallel.schedule=dualpipev", "--parallel.split_backward=false"],
    )
    ahead = re.match(
        r"receives are posted (\d) to (\d) actions ahead",
        receives(small, pipeline_costs(small, 8), 16, 1)[0],
    )
    assert 1 <= int(ahead[1]) < int(ahead[2])
    config.parallel.pipeline = 1
    assert receives(config, costs, 16, 0) == []
    config.parallel.schedule = "megatron_1f1b"
    assert receives(config, costs, 16, 0) == []
