"""Every kernel compiled without a GPU for three generations, and what the machine code holds."""

import json
import os
import subprocess
import sys

import pytest

LIMIT = {80: 163, 90: 227, 100: 227}  # KiB of shared memory a program may have


def compile_all(*arguments):
    """tools.compile_kernels in a process of its own: in this one the kernels may be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.compile_kernels", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


KERNELS = {
    "read_forward",
    "write_forward",
    "write_backward",
    "write_fold",
    "read_backward_coefficients",
    "read_backward_streams",
}


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 100])
def test_the_27b_shape(sm):
    reports = compile_all("--sm", str(sm), "--hidden", "2560")
    assert {r["name"] for r in reports} == KERNELS
    for r in reports:
        assert r["shared"] <= LIMIT[sm] * 1024, r
        assert r["wide_loads"] > 0, r
        if sm == 90:
            assert r["stack"] == 0, r
        if r["name"] in ("read_forward", "write_fold", "read_backward_streams"):
            assert r["tensor_core"] > 0, r
        if r["name"] == "write_forward":
            assert r["wide_loads"] == 5, r  # four streams and y; the rest are coefficients
        if r["name"] == "write_backward":
            assert r["wide_loads"] == 9, r  # four streams, their gradients and y


@pytest.mark.slow
def test_other_stream_counts_fit_hopper():
    for r in compile_all("--sm", "90", "--hidden", "1280", "--n", "8"):
        assert r["shared"] <= LIMIT[90] * 1024 and r["registers"] <= 255 and r["stack"] == 0, r
