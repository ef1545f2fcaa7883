"""The peak that MFU is of: what is configured, what a data sheet says, or what is measured."""

import pytest
import torch

from hcmegatron.platform import peak_flops
from hcmegatron.platform.peak_flops import peak_tflops


@pytest.fixture
def gpu(monkeypatch):
    """Makes a device of that name the one that is there."""

    def named(name):
        monkeypatch.setattr(peak_flops.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(peak_flops.torch.cuda, "get_device_name", lambda: name)

    return named


def test_what_is_configured_wins(gpu):
    gpu("NVIDIA H100 80GB HBM3")
    assert peak_tflops(0.5, torch.float32) == (0.5, "run.peak_tflops")


@pytest.mark.parametrize(
    ("name", "tflops", "model"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0, "H100"),
        ("NVIDIA H200", 989.0, "H200"),
        ("NVIDIA A100-SXM4-40GB", 312.0, "A100"),
        ("NVIDIA B200", 2250.0, "B200"),
        ("NVIDIA GB200", 2500.0, "GB200"),
        ("AMD Instinct MI300X", 1307.0, "MI300X"),
    ],
)
def test_a_known_device_has_its_data_sheets(gpu, name, tflops, model):
    gpu(name)
    assert peak_tflops(None, torch.bfloat16) == (tflops, f"{model} dense bf16")


@pytest.mark.parametrize("there", [False, True])
def test_another_is_measured(gpu, monkeypatch, there):
    asked = []
    gpu("some other")
    monkeypatch.setattr(peak_flops.torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(peak_flops, "_measured", lambda dtype: asked.append(dtype) or 1.5)
    assert peak_tflops(None, torch.bfloat16) == (1.5, "measured bfloat16 matmul")
    assert asked == [torch.bfloat16]


@pytest.fixture
def timed(monkeypatch):
    """The clock shows these times, one after another; on the device named. Returns what was made there."""
    made, ones = [], torch.ones

    def noted(*size, **options):
        made.append((size, options))
        return ones(*size, dtype=options["dtype"])

    def shows(times, device):
        monkeypatch.setattr(peak_flops.torch, "ones", noted)
        monkeypatch.setattr(peak_flops.torch.cuda, "is_available", lambda: device == "cuda")
        monkeypatch.setattr(peak_flops.time, "perf_counter", iter(times).__next__)
        return made

    return shows


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_fastest_matmul_counts(timed, device):
    """2 x 100^3 FLOPs in 3 s, 1 s and 2 s. What warms up is not timed, and at its end the time is over."""
    made = timed([0.0, *(0.0, 10.0, 13.0), *(13.0, 20.0, 21.0), *(21.0, 30.0, 32.0), 40.0], device)
    assert peak_flops._measured(torch.float64, size=100, seconds=40.0) == 2e-6
    assert made == [((100, 100), {"dtype": torch.float64, "device": device})] * 2


def test_a_square_of_768_for_015_seconds(timed):
    made = timed([5.0, *(5.0, 5.01, 5.02), *(5.125, 5.13, 5.14), 5.15], "cpu")
    assert peak_flops._measured(torch.float32) == pytest.approx(2 * 768**3 / 0.01 / 1e12, rel=1e-12)
    assert made[0][0] == (768, 768)
