"""How many launches the connection costs the host in every sub-layer: one too many fails here."""

import json
import os
import subprocess
import sys

import pytest

from tools import count_launches

# What the Triton path launches for mHC: per sub-layer, its write folded with the next read.
FORWARD = {"read_forward": 1, "write_fold": 1}
BACKWARD = dict.fromkeys(
    ("write_backward", "read_backward_coefficients", "read_backward_streams", "read_backward_sums"), 1
)
MOST = {"forward": 12, "backward": 16}


@pytest.fixture(scope="module")
def counted():
    """`tools.count_launches --json` in a process of its own: in this one the kernels may be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    runs = {}
    for name, options in {"plain": [], "dropout": ["--bias", "--dropout", "0.1"]}.items():
        command = [
            sys.executable,
            "-m",
            "tools.count_launches",
            "--json",
            "--kinds",
            "residual",
            "mhc",
            *options,
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for r in json.loads(done.stdout):
            runs[name, r["kind"], r["kernels"], r["way"]] = r
    return runs


def test_triton_launches_its_kernels_and_nothing_else(counted):
    """Beside them, one addition to the gradient of each of the seven parameters."""
    forward, backward = (counted["plain", "mhc", "triton", way] for way in MOST)
    assert forward["triton"] == FORWARD and backward["triton"] == BACKWARD
    assert not forward["torch"] and not backward["torch"]
    assert forward["accumulated"] == 0 and backward["accumulated"] == 7
    assert forward["launches"] == 2 and backward["launches"] == 11
    assert forward["launches"] + forward["allocations"] <= MOST["forward"]


@pytest.mark.parametrize("way", MOST)
@pytest.mark.parametrize("run", ["plain", "dropout"])
def test_the_connections_share_stays_small(counted, run, way):
    """With T's bias and dropout inside the write too."""
    mine, plain = (counted[run, kind, "triton", way]["launches"] for kind in ("mhc", "residual"))
    assert mine <= MOST[way]
    assert plain >= 1


def test_torch_launches_the_iterations_one_by_one(counted):
    """What the Triton path is for: the counting sees them."""
    assert counted["plain", "mhc", "torch", "forward"]["torch"]["logsumexp"] == 39
    assert counted["plain", "mhc", "torch", "backward"]["launches"] > 200


def test_counts_what_reaches_the_device(monkeypatch):
    """Operations and sums into gradients are launches; views and allocations are none."""
    import torch

    def operations(x, parameter):
        y = (x.view(4, 2) * 2).mT.contiguous()
        z = torch.empty_like(y).copy_(y)
        return z.sum() * parameter.sum()

    x = torch.ones(8, device="meta")
    parameter = torch.ones(3, device="meta", requires_grad=True)
    parameter.grad = torch.ones(3, device="meta")
    with count_launches.Counting([parameter.grad]) as counting:
        operations(x, parameter).backward()
    count = counting.count
    assert count.torch == {"mul": 3, "clone": 1, "copy_": 1, "sum": 2, "ones_like": 1}
    assert count.accumulated == 1 and count.allocations == 1
