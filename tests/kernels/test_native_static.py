"""Reads and writes in C with coefficients that are the same for all tokens, against the mathematics in fp64."""

import pytest
import torch

from hcmegatron.connections.mixing import mix, mix_and_add
from hcmegatron.kernels import torch_hyper, torch_path
from hcmegatron.kernels.native import static
from hcmegatron.kernels.native.library import obstacle
from hcmegatron.kernels.native.primitives import FILES
from tests.kernels.reference import close, exact_copies, in_both_layouts, rounded_once, weights_like

OBSTACLE = obstacle(1, "static", *FILES)
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"not compiled: {OBSTACLE}")
LOW = (torch.float32, torch.bfloat16)


def read_inputs(T, n, C, m, dtype=torch.float32):
    """H and the mix."""
    g = torch.Generator().manual_seed(1)
    drawn = torch.randn(T, n, C, generator=g).to(dtype), torch.randn(m, n, generator=g)
    return [t.requires_grad_() for t in drawn]


def write_inputs(T, n, C, shared, dtype=torch.float32, with_bias=False):
    """H, y, post, res and bias or None."""
    g = torch.Generator().manual_seed(2)
    rows = 1 if shared else n
    shapes = [((T, n, C), dtype), ((T, rows, C), dtype), ((n,), torch.float32), ((n, n), torch.float32)]
    shapes += [((rows, C), dtype)] * with_bias
    return [torch.randn(shape, generator=g).to(kind).requires_grad_() for shape, kind in shapes]


def exact_write(H, y, post, res, bias=None):
    return mix_and_add(H, y if bias is None else y + bias, post, res)


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
    leaves = read_inputs(T, n, C, n if fractions else 1, dtype)
    compare(static.read, lambda H, by: (mix(H, by), H), leaves)


@pytest.mark.parametrize("C", [12, 48])
@pytest.mark.parametrize("T", [0, 1, 19])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["hc", "fc"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_writes(n, shared, dtype, T, C):
    """A bias is added in fp32, which makes y wider than bf16 streams."""
    for with_bias in (False, True):
        leaves = write_inputs(T, n, C, shared, dtype, with_bias)
        compare(lambda *own: (static.write(*own),), lambda *own: (exact_write(*own),), leaves)


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
        (static.write, write_inputs(7, 4, 16, not fractions)),
    ):
        for a, b in zip(*in_both_layouts(run, leaves), strict=True):
            torch.testing.assert_close(a, b)


def test_other_precisions_and_widths_are_torchs(monkeypatch):
    """What is repeated for every token goes to the other path, and nothing else does."""
    monkeypatch.setattr(torch_hyper, "static_read", lambda *given: "torch's")
    H, by = read_inputs(3, 2, 16, 1)
    assert len(static.read(H, by)) == 2
    for other in (H.half(), H.double(), H[..., :8]):
        assert static.read(other, by) == "torch's"
    repeated = []
    monkeypatch.setattr(torch_path, "write", lambda H, y, post, *_, **__: repeated.append(post.dim() == 2))
    for C, dtype in ((16, torch.float32), (16, torch.bfloat16), (12, torch.float32), (16, torch.float64)):
        static.write(*write_inputs(3, 2, C, True, dtype))
    assert repeated == [False, False, True, True]
