"""The hand-written Sinkhorn against autograd through the mathematics, in both of its forms."""

import pytest
import torch

from hcmegatron.connections.sinkhorn import sinkhorn as reference
from hcmegatron.kernels import torch_sinkhorn

EPS = ("none", "additive", "clamp")


def logits(n, scale, T=64, dtype=torch.float64):
    g = torch.Generator().manual_seed(n)
    return (scale * torch.randn(n, n, T, generator=g, dtype=torch.float64)).to(dtype)


def exact(L, iterations, eps, dM):
    """Reference matrix and gradient, tokens last."""
    L = L.double().permute(2, 0, 1).requires_grad_()
    M = reference(L, iterations, eps)
    (dL,) = torch.autograd.grad(M, L, dM.double().permute(2, 0, 1))
    return M.permute(1, 2, 0), dL.permute(1, 2, 0)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize(
    ("n", "scale", "linear"), [(1, 1.0, True), (4, 2.0, True), (4, 30.0, False), (3, 9.0, False)]
)
def test_forward_and_backward(eps, iterations, n, scale, linear):
    L, dM = logits(n, scale), logits(n, 1.0)
    assert torch_sinkhorn.linear_suffices(L) == linear
    M, dL = exact(L, iterations, eps, dM)
    torch.testing.assert_close(torch_sinkhorn.forward(L, iterations, eps), M, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(torch_sinkhorn.backward(L, dM, iterations, eps), dL, rtol=1e-8, atol=1e-11)


def test_clamp_acts_in_the_cases_above():
    """A column that every row neglects: its sum after the row step lies under the floor."""
    L = logits(4, 30.0)
    assert (torch_sinkhorn.forward(L, 20, "clamp") - torch_sinkhorn.forward(L, 20, "none")).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["linear", "log"])
def test_the_linear_form_is_as_exact_at_the_edge_of_its_range(form, monkeypatch):
    L = logits(4, 1.0, dtype=torch.float32)
    L = L * (torch_sinkhorn.LINEAR_SPAN * 0.999 / (L.max() - L.min()))
    assert torch_sinkhorn.linear_suffices(L)
    monkeypatch.setattr(torch_sinkhorn, "linear_suffices", lambda L: form == "linear")
    dM = logits(4, 1.0, dtype=torch.float32)
    M, dL = exact(L, 20, "none", dM)
    torch.testing.assert_close(torch_sinkhorn.forward(L, 20, "none").double(), M, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch_sinkhorn.backward(L, dM, 20, "none").double(), dL, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(eps, dtype):
    signs = torch.randint(0, 2, (4, 4, 256), generator=torch.Generator().manual_seed(0)) * 2 - 1
    L = (1000.0 * signs).to(dtype)
    M = torch_sinkhorn.forward(L, 20, eps)
    dL = torch_sinkhorn.backward(L, M.cumsum(0), 20, eps)
    assert M.isfinite().all() and dL.isfinite().all()


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0, 1000.0])
def test_row_sums(scale, iterations):
    for n in (2, 4, 8):
        rows = torch_sinkhorn.forward(logits(n, scale, dtype=torch.float32), iterations, "none").sum(1)
        assert (rows - 1).abs().max() <= 1e-6


def test_no_tokens():
    L = torch.zeros(4, 4, 0)
    assert (
        torch_sinkhorn.forward(L, 20, "none").shape
        == torch_sinkhorn.backward(L, L, 20, "none").shape
        == (4, 4, 0)
    )
