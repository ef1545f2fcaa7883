"""Reads and writes in C with coefficients that are the same for all tokens, against the mathematics in fp64."""

import pytest
import torch

from hcmegatron.connections.mixing import mix, mix_and_add
from hcmegatron.kernels import torch_hyper
from hcmegatron.kernels.native import hyper_write, static
from hcmegatron.kernels.native.library import obstacle
from hcmegatron.kernels.native.primitives import FILES
from tests.kernels.reference import close, exact_copies, in_both_layouts, rounded_once, weights_like

OBSTACLE = obstacle(1, "static", *FILES)
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"not compiled: {OBSTACLE}")
LOW = (torch.float32, torch.bfloat16)


def read_inputs(T, n, C, m, dtype=torch.float32):
    """H [T,n,C], or of FC [T,1,n C], and the mix [n] or [n,m]."""
    g = torch.Generator().manual_seed(1)
    shapes = ((T, n, C), (n,)) if m == 1 else ((T, 1, n * C), (n, m))
    H, by = (torch.randn(shape, generator=g) for shape in shapes)
    return [H.to(dtype).requires_grad_(), by.requires_grad_()]


def exact_read(H, by):
    n, (T, w, C) = len(by), H.shape
    return mix(H.reshape(T, n, w * C // n), by.view(n, -1).mT).flatten(1), H


def write_inputs(T, n, C, shared, dtype=torch.float32, with_bias=False):
    """H, y, post, res and bias or None, post and res the same for all tokens."""
    g = torch.Generator().manual_seed(2)
    streams, C = ((T, n, C), C) if shared else ((T, 1, n * C), n * C)
    shapes = [(streams, dtype), ((T, C), dtype), ((n,), torch.float32), ((n, n), torch.float32)]
    shapes += [((C,), dtype)] * with_bias
    return [torch.randn(shape, generator=g).to(kind).requires_grad_() for shape, kind in shapes]


def exact_write(H, y, post, res, bias=None):
    (T, w, C), n = H.shape, len(post)
    y = (y if bias is None else y + bias).view(T, n // w, w * C // n)
    return mix_and_add(H.view(T, n, w * C // n), y, post, res).view(H.shape)


def compare(run, exact_run, leaves):
    """Outputs and gradients; what is as the streams is rounded once."""
    exact = exact_copies(leaves)
    out, truth = run(*leaves), exact_run(*exact)
    weights = [w.to(leaves[0].dtype) for w in weights_like(truth)]
    got = [*out, *torch.autograd.grad(out, leaves, weights)]
    want = [*truth, *torch.autograd.grad(truth, exact, [w.double() for w in weights])]
    for mine, right in zip(got, want, strict=True):
        assert mine.shape == right.shape
        if mine.dtype == torch.bfloat16 and mine.numel():
            rounded_once(mine, right)
        elif mine.dtype == torch.float32:
            close(mine, right, 1e-5)


@pytest.mark.parametrize("C", [12, 16, 48])
@pytest.mark.parametrize("T", [0, 1, 19])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("fractions", [False, True], ids=["hc", "fc"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_reads(n, fractions, dtype, T, C):
    leaves = read_inputs(T, n, C, n if fractions and n > 1 else 1, dtype)
    compare(static.read, exact_read, leaves)


@pytest.mark.parametrize("C", [12, 48])
@pytest.mark.parametrize("T", [0, 1, 19])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_writes(n, shared, dtype, T, C):
    """A bias is added in fp32, which makes y wider than bf16 streams."""
    for with_bias in (False, True):
        leaves = write_inputs(T, n, C, shared, dtype, with_bias)
        compare(lambda *own: (hyper_write.write(*own),), lambda *own: (exact_write(*own),), leaves)


@pytest.mark.parametrize("use", [0, 1])
def test_one_output_of_a_read_that_reaches_the_loss(use):
    leaves = read_inputs(9, 3, 16, 1)
    made = [
        torch.autograd.grad(run(*leaves)[use].square().sum(), leaves, materialize_grads=True)
        for run in (static.read, torch_hyper.static_read)
    ]
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("fractions", [False, True], ids=["hc", "fc"])
def test_non_contiguous_tensors_and_gradients(fractions):
    for run, leaves in (
        (static.read, read_inputs(7, 4, 16, 4 if fractions else 1)),
        (hyper_write.write, write_inputs(7, 4, 16, not fractions)),
    ):
        for a, b in zip(*in_both_layouts(run, leaves), strict=True):
            torch.testing.assert_close(a, b)


def test_writes_of_any_coefficients_equal_torchs():
    """Also with tokens in two dimensions, and where only one of post and res is each token's."""
    g = torch.Generator().manual_seed(3)
    for post, res in (((5, 3, 4), (5, 3, 4, 4)), ((5, 3, 4), (4, 4)), ((4,), (4, 4))):
        shapes = [(5, 3, 4, 16), (5, 3, 16), post, res]
        leaves = [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]
        made = [
            (out, *torch.autograd.grad(out.square().sum(), leaves))
            for out in (write(*leaves) for write in (hyper_write.write, torch_hyper.write))
        ]
        for got, want in zip(*made, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_other_precisions_and_widths_are_torchs(monkeypatch):
    monkeypatch.setattr(torch_hyper, "static_read", lambda *given: "torch's")
    H, by = read_inputs(3, 2, 16, 1)
    assert len(static.read(H, by)) == 2
    for other in (H.half(), H.double(), H[..., :8]):
        assert static.read(other, by) == "torch's"
    monkeypatch.setattr(hyper_write, "_by_torch", lambda *given: "torch's")
    for C, dtype in ((16, torch.float32), (16, torch.bfloat16)):
        assert hyper_write.write(*write_inputs(3, 2, C, True, dtype)).dtype == dtype
    for C, dtype in ((12, torch.float32), (16, torch.float64)):
        assert hyper_write.write(*write_inputs(3, 2, C, True, dtype)) == "torch's"


def test_dropout():
    """Of y, before it is added, divided by what is left of it."""
    H, y, post, res = write_inputs(64, 2, 16, True)
    H, y, post, res = torch.zeros_like(H), torch.ones_like(y), torch.ones_like(post), res
    out = hyper_write.write(H, y, post, res, dropout=0.5)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out[:, 0], out[:, 1])
