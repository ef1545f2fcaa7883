import pytest
import torch

from hcmegatron.config.ranges import KERNEL_STREAMS
from hcmegatron.config.schema import Config, Connection
from hcmegatron.connections.build import build_connection
from hcmegatron.kernels import tuning
from hcmegatron.kernels.native import library
from hcmegatron.kernels.select import MAX_STREAMS, select_kernels
from hcmegatron.model.specs import layer_spec

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")


def test_the_limit_that_the_configuration_knows():
    assert KERNEL_STREAMS == MAX_STREAMS == library.MAX_STREAMS == 8


def test_torch_when_asked():
    chosen = select_kernels("torch", n=4)
    assert (chosen.name, chosen.reason) == ("torch", "torch: asked for")


@no_gpu
def test_auto_says_why_it_takes_torch(monkeypatch):
    assert select_kernels("auto", n=4).reason == "torch: the interpreter is for tests"
    assert select_kernels("auto", n=9).reason == "torch: n=9, the Triton kernels hold up to 8"
    assert select_kernels("auto", n=4, dtype=torch.float64).reason == "torch: fp64"
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert select_kernels("auto", n=4).reason == "torch: no CUDA device"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert select_kernels("auto", n=4).reason == "torch: Triton is not installed"


@no_gpu
def test_an_explicit_choice_that_cannot_run_is_an_error(monkeypatch):
    assert select_kernels("triton", n=4).reason == "triton: n=4, fp32, interpreter"
    with pytest.raises(ValueError, match="kernels=triton cannot run: n=9"):
        select_kernels("triton", n=9)
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(
        ValueError, match="kernels=triton cannot run: no CUDA device; use kernels=auto or torch"
    ):
        build_connection(Connection(), 8, 0, norm_eps=0.0, kernels="triton")


def test_unknown_name():
    with pytest.raises(ValueError, match="kernels='cuda': choose one of auto, torch, triton, native"):
        select_kernels("cuda", n=4)


@pytest.fixture
def hopper(monkeypatch):
    """torch says that there is an H100; nothing is put on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tuning, "restore", lambda device: 0)


def test_auto_takes_triton_on_a_gpu_and_says_for_which_streams(hopper, monkeypatch):
    assert select_kernels("auto", n=4, dtype=torch.bfloat16).reason == "triton: n=4, bf16, sm_90"
    assert select_kernels("auto", n=8, dtype=torch.float16).reason == "triton: n=8, fp16, sm_90"
    assert select_kernels("auto", n=4, dtype=torch.float64).reason == "torch: fp64"
    with pytest.raises(ValueError, match="kernels=triton cannot run: fp64; use kernels=auto or torch"):
        select_kernels("triton", n=4, dtype=torch.float64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert select_kernels("auto", n=4).reason == "torch: sm_75, the Triton kernels need sm_80 or later"


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("bf16", "triton: n=4, bf16, sm_90"),
        ("fp32", "triton: n=4, fp32, sm_90"),
        ("fp64", "torch: fp64"),
    ],
)
def test_a_model_asks_for_the_dtype_of_its_streams(hopper, dtype, reason):
    """Parameters of connections are fp32 beside bf16 streams, so the streams' dtype has to be said."""
    config = Config()
    config.training.dtype = dtype
    submodules = layer_spec(config, 0).submodules
    for connection in (submodules.attention_connection(), submodules.mlp_connection()):
        assert connection.kernels.reason == reason
