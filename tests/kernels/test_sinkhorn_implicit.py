"""Sinkhorn's implicit backward: the gradient of its limit, against autograd through many iterations, in both paths."""

import pytest
import torch

from hcmegatron.connections.sinkhorn import sinkhorn
from hcmegatron.kernels import torch_path, torch_sinkhorn_implicit, triton_path
from hcmegatron.kernels.options import ReadOptions
from tests.kernels.reference import compare, inputs, leaf, weights_like

IMPLICIT = {"iterations": 200, "sinkhorn_backward": "implicit"}


def case(n, scale, T=50):
    g = torch.Generator().manual_seed(n)
    return [by * torch.randn(n, n, T, generator=g, dtype=torch.float64) for by in (scale, 1.0)]


def through(L, dM, iterations):
    """Matrices and the logits' gradient by autograd through the iterations."""
    leaf_ = L.permute(2, 0, 1).clone().requires_grad_()
    M = sinkhorn(leaf_, iterations)
    (dL,) = torch.autograd.grad(M, leaf_, dM.permute(2, 0, 1))
    return M.detach().permute(1, 2, 0), dL.permute(1, 2, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_exact_at_the_fixed_point(n):
    L, dM = case(n, 1.0)
    M, dL = through(L, dM, 400)
    torch.testing.assert_close(torch_sinkhorn_implicit.backward(M, dM), dL, rtol=1e-9, atol=1e-12)


def test_near_the_limit_after_twenty_iterations():
    """Nearer to the limit's gradient than that of the iterations is, for logits of ordinary size."""
    L, dM = case(4, 1.0, T=500)
    (_, limit), (M, through_20) = through(L, dM, 400), through(L, dM, 20)
    implicit = torch_sinkhorn_implicit.backward(M, dM)
    error, of_iterations = ((d - limit).abs().max() for d in (implicit, through_20))
    assert 0 < error < of_iterations < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8, 1e-30, 0.0])
def test_weakly_connected_streams(size, dtype):
    """Two pairs of streams with `size` between them: potentials stay as large as dM, and nothing is divided by zero."""
    mixed = torch.tensor([[0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    M = torch.block_diag(mixed, mixed) + size * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    M = (M / M.sum(1, keepdim=True)).unsqueeze(-1)
    dM = case(4, 1.0, 1)[1]
    exact = torch_sinkhorn_implicit.backward(M, dM)
    D = torch_sinkhorn_implicit.backward(M.to(dtype), dM.to(dtype))
    assert D.abs().max() < 4 * dM.abs().max()
    torch.testing.assert_close(D.double(), exact, rtol=1e-5, atol=1e-6)
    for dim in (0, 1):
        assert D.sum(dim).abs().max() < 1e-5


def test_a_permutation_has_no_gradient():
    M = torch.eye(4)[[2, 0, 3, 1]].unsqueeze(-1)
    assert torch.equal(torch_sinkhorn_implicit.backward(M, torch.randn(4, 4, 1)), torch.zeros(4, 4, 1))


@pytest.mark.parametrize("orientation", ["paper", "deepseek_v4", "column_last"])
@pytest.mark.parametrize("n", [3, 4])
def test_whole_sub_layer_on_torch(n, orientation):
    """Read and write in fp64: with 200 iterations the reference has converged."""
    compare(
        torch_path.read,
        torch_path.write,
        ReadOptions(n, orientation=orientation, **IMPLICIT),
        scale=0.3,
        tolerance=1e-10,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels run on it")
@pytest.mark.parametrize(("n", "orientation"), [(1, "paper"), (3, "column_last"), (4, "paper")])
def test_triton_gives_what_torch_gives(n, orientation):
    options = ReadOptions(n, iterations=4, orientation=orientation, sinkhorn_backward="implicit")
    found = []
    for path in (torch_path, triton_path):
        leaves = [leaf(t) for t in inputs(options, T=5, dtype=torch.float32)]
        out = path.read(*leaves, options)
        loss = sum((o * w).sum() for o, w in zip(out, weights_like(out), strict=True))
        found.append([*out, *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_epsilon_has_no_such_limit():
    with pytest.raises(
        ValueError, match="sinkhorn_eps=clamp: sinkhorn_backward=implicit is of the map without"
    ):
        ReadOptions(4, sinkhorn_eps="clamp", sinkhorn_backward="implicit")
