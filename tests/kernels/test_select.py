import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections.build import build_connection
from hcmegatron.kernels.select import select

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")


def test_torch_when_asked():
    chosen = select("torch", n=4)
    assert (chosen.name, chosen.reason) == ("torch", "torch: asked for")


@no_gpu
def test_auto_says_why_it_takes_torch(monkeypatch):
    assert select("auto", n=4).reason == "torch: the interpreter is for tests"
    assert select("auto", n=9).reason == "torch: n=9, the Triton kernels hold up to 8"
    assert select("auto", n=4, dtype=torch.float64).reason == "torch: fp64"
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert select("auto", n=4).reason == "torch: no CUDA device"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert select("auto", n=4).reason == "torch: Triton is not installed"


@no_gpu
def test_an_explicit_choice_that_cannot_run_is_an_error(monkeypatch):
    assert select("triton", n=4).reason == "triton: n=4, interpreter"
    with pytest.raises(ValueError, match="kernels=triton cannot run: n=9"):
        select("triton", n=9)
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(
        ValueError, match="kernels=triton cannot run: no CUDA device; use kernels=auto or torch"
    ):
        build_connection(Connection(), 8, 0, norm_eps=0.0, kernels="triton")


def test_unknown_name():
    with pytest.raises(ValueError, match="kernels='cuda': choose one of auto, torch, triton"):
        select("cuda", n=4)
