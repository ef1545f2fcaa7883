"""The Triton kernels (in the interpreter where there is no GPU) on 16-bit streams: every result is rounded once."""

import pytest
import torch

from hcmegatron.kernels import triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.numpy_warnings import padding_overflows, sigmoids_overflow
from tests.kernels.reference import inputs, leaf, name_of, weights_like, write_inputs

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
)
OPTIONS = ReadOptions(4, iterations=4)


def half_unit(dtype):
    """Of the last place, relative. Triton's interpreter cuts fp32 off to bf16 where a GPU rounds to nearest: a
    whole unit there."""
    return torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.5)


def rounded_once(low, exact, dtype):
    """Every entry of dtype and within its half a unit in the last place of the exact one, and fp32's own error."""
    assert low.dtype == dtype
    bound = half_unit(dtype) * exact.abs() * (1 + 1e-3) + 2e-6 * exact.abs().max().clamp(min=1)
    assert ((low.float() - exact).abs() <= bound).all(), ((low.float() - exact).abs() / bound).max()


def not_rounded(low, exact):
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=1e-5, atol=1e-5)


def in_fp32(t):
    return leaf(t.detach().float())


READS_16_BIT = [
    OPTIONS,
    ReadOptions(3, iterations=4, orientation="deepseek_v4", rms_eps="added", eps=1e-2),
    ReadOptions(4, iterations=4, orientation="column_last", rms_eps="inside", eps=1e-2, pre_eps=1e-2),
    ReadOptions(3, iterations=4, sinkhorn_eps="additive", use_pre=False),
    ReadOptions(5, iterations=4, sinkhorn_eps="clamp", use_post=False),
    ReadOptions(4, use_res=False),
]


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", READS_16_BIT, ids=name_of)
@padding_overflows
def test_16_bit_reads_are_rounded_once(options, dtype, folded):
    """The read on 16-bit streams, forward and backward, is the fp32 computation on the same numbers, rounded at
    the end: half a unit in the last place. Coefficients and parameters' gradients stay fp32, not rounded at all.
    Folded: with the projection that the write of the same streams made, a write that changes nothing."""
    T, C, n = 5, 12, options.n
    H, *parameters = inputs(options, T, C, dtype)
    g = torch.Generator().manual_seed(3)
    dx, dH = (torch.randn(shape, generator=g).to(dtype) for shape in ((T, C), (T, n, C)))

    def run(cast, *projection):
        leaves = [cast(H), *map(leaf, parameters)]
        x, *coefficients, streams = triton_path.read(*leaves, options, *projection)
        given = [cast(dx).detach(), *(w.float() for w in weights_like(coefficients)), cast(dH).detach()]
        torch.autograd.backward((x, *coefficients, streams), given)
        return [x, leaves[0].grad], [*coefficients, *(t.grad for t in leaves[1:])]

    still = torch.zeros(T, 1, C, dtype=dtype), torch.zeros(T, n), torch.eye(n).expand(T, n, n)
    out, projection = triton_path.write_and_project(H, *still, parameters[0])
    assert torch.equal(out, H)
    low, low_wide = run(leaf, *[projection] * folded)
    exact, exact_wide = run(in_fp32)
    for a, e in zip(low, exact, strict=True):
        rounded_once(a, e, dtype)
    for a, e in zip(low_wide, exact_wide, strict=True):
        not_rounded(a, e)


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
def test_16_bit_writes_are_rounded_once(shared, with_bias, dtype, folded):
    """As the reads. A fold's projection is the fp32 one of the streams as they were rounded."""
    T, n, C = 5, 4, 12
    leaves = write_inputs(n, T, C, dtype, shared, with_bias)
    phi = inputs(OPTIONS, T, C, dtype)[1]
    dH = weights_like([leaves[0]])[0].to(dtype)

    def run(cast):
        own = [None if t is None else cast(t) for t in leaves]
        if folded:
            out, (projection, square) = triton_path.write_and_project(*own[:4], phi, own[4])
            not_rounded(projection, out.float().flatten(1) @ phi)
            not_rounded(square, out.float().flatten(1).square().sum(1))
        else:
            out = triton_path.write(*own)
        out.backward(cast(dH).detach())
        return [out, *(t.grad for t in own if t is not None)]

    low, exact = run(leaf), run(in_fp32)
    for a, e in zip(low[:3], exact[:3], strict=True):  # H', dH, dy
        rounded_once(a, e, dtype)
    for a, e in zip(low[3:5], exact[3:5], strict=True):  # dpost, dres
        not_rounded(a, e)
    if with_bias:  # the sum over tokens of dy as it was rounded, rounded itself
        bound = half_unit(dtype) * (exact[2].abs().sum(0) + exact[5].abs()) * 1.01 + 1e-5
        assert low[5].dtype == dtype and ((low[5].float() - exact[5]).abs() <= bound).all()


@sigmoids_overflow
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("n", range(2, 9))
def test_row_sums_on_the_bf16_path(n, scale):
    leaves = inputs(ReadOptions(n), T=64, dtype=torch.bfloat16, scale=scale)
    res = triton_path.read(*leaves, ReadOptions(n))[3]
    assert (res.double().sum(-1) - 1).abs().max() <= 1e-6
