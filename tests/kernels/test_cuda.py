"""The Triton kernels on a GPU: the same comparisons as in the interpreter, and what only a GPU can show."""

import pytest
import torch

from hcmegatron.kernels import torch_path
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.select import select_kernels
from tests.kernels.reference import VARIANTS, compare, inputs, name_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
OPTIONS = ReadOptions(4)


@pytest.fixture
def kernels():
    return select_kernels("triton", n=4, device="cuda")


def on_gpu(options, **shape):
    return [t.detach().cuda().requires_grad_() for t in inputs(options, **shape)]


def sub_layer(kernels, leaves, options):
    """Outputs and gradients of read, an elementwise T, and write."""
    x, pre, post, res, streams = kernels.read(*leaves, options)
    out = kernels.write(streams, torch.tanh(x).unsqueeze(1), post, res)
    return [x, pre, post, res, out, *torch.autograd.grad(out.float().square().sum(), leaves)]


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_fp32_equals_the_mathematics(kernels, options):
    compare(kernels.read, kernels.write, options, 19, 40, torch.float32, tolerance=1e-5, device="cuda")


@pytest.mark.parametrize(("T", "C"), [(0, 64), (1, 64), (257, 100), (33, 2560)])
def test_odd_sizes(kernels, T, C):
    compare(kernels.read, kernels.write, OPTIONS, T, C, torch.float32, tolerance=1e-5, device="cuda")


@pytest.mark.parametrize("C", [2560, 7168])
def test_bf16_beside_the_torch_path(kernels, C):
    """At production width: TF32 has 10 bits of phi's mantissa, bf16 streams 8."""
    leaves = on_gpu(OPTIONS, T=512, C=C, dtype=torch.bfloat16)
    pairs = zip(sub_layer(kernels, leaves, OPTIONS), sub_layer(torch_path, leaves, OPTIONS), strict=True)
    for ours, theirs in pairs:
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 2e-2, error
    assert (sub_layer(kernels, leaves, OPTIONS)[3].sum(-1) - 1).abs().max() <= 1e-6


def test_repeats_bit_for_bit(kernels):
    leaves = on_gpu(OPTIONS, T=4096, C=2560, dtype=torch.bfloat16)
    runs = [sub_layer(kernels, leaves, OPTIONS) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_token_counts_share_one_compilation(kernels):
    from hcmegatron.kernels import triton_read_backward, triton_read_forward, triton_write

    compiled = (
        triton_read_forward.read_forward,
        triton_read_backward.read_backward_streams,
        triton_read_backward.read_backward_sums,
        triton_write.write_backward,
    )
    sub_layer(kernels, on_gpu(OPTIONS, T=64, C=128, dtype=torch.bfloat16), OPTIONS)
    before = [sum(len(c[0]) for c in k.device_caches.values()) for k in compiled]
    for T in (1, 17, 100, 4096):
        sub_layer(kernels, on_gpu(OPTIONS, T=T, C=128, dtype=torch.bfloat16), OPTIONS)
    assert before == [sum(len(c[0]) for c in k.device_caches.values()) for k in compiled]


def test_auto_takes_triton_and_says_so():
    major, minor = torch.cuda.get_device_capability()
    assert select_kernels("auto", n=4).reason == f"triton: n=4, fp32, sm_{major}{minor}"
