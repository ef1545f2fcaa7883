import pytest
import torch

from hcmegatron.connections.manifold import residual_matrix
from hcmegatron.connections.sinkhorn import sinkhorn

EPS = ("none", "additive", "clamp")


def logits(n, scale=1.0, dtype=torch.float64, batch=64):
    generator = torch.Generator().manual_seed(n)
    return (scale * torch.randn(batch, n, n, generator=generator, dtype=torch.float64)).to(dtype)


def direct(L, iterations):
    """Eq. 9 word for word: exp, then columns, then rows."""
    M = L.exp()
    for _ in range(iterations):
        M = M / M.sum(-2, keepdim=True)
        M = M / M.sum(-1, keepdim=True)
    return M


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_is_equation_9(n, iterations):
    L = logits(n, 3.0)
    torch.testing.assert_close(sinkhorn(L, iterations), direct(L, iterations), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_row_sums_are_one_to_rounding(scale):
    for n in (2, 4, 7):
        rows = sinkhorn(logits(n, scale, torch.float32)).sum(-1)
        assert (rows - 1).abs().max() <= n * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(eps, dtype):
    signs = torch.randint(0, 2, (256, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    L = (1000.0 * signs).to(dtype).requires_grad_()
    M = sinkhorn(L, 20, eps)
    (dL,) = torch.autograd.grad(M, L, torch.ones_like(M).cumsum(-1))
    assert M.isfinite().all() and dL.isfinite().all()
    if eps == "none":
        assert (M.sum(-1) - 1).abs().max() <= 4 * torch.finfo(dtype).eps


def test_column_shift_changes_nothing_and_the_last_step_is_the_row():
    L = logits(4, 2.0)
    torch.testing.assert_close(sinkhorn(L + 50 * torch.arange(4.0, dtype=L.dtype), 3), sinkhorn(L, 3))
    assert (sinkhorn(L, 3).sum(-2) - 1).abs().max() > 1e-6  # a row shift would change this finite iteration


def v4(L, iterations, eps=1e-6):
    """DeepSeek-V4's stored matrix: a row softmax plus eps, columns, then rows and columns in turn."""
    M = torch.softmax(L, -1) + eps
    M = M / (M.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        M = M / (M.sum(-1, keepdim=True) + eps)
        M = M / (M.sum(-2, keepdim=True) + eps)
    return M


def megatron(L, iterations, eps=1e-6):
    """Megatron-Core main of August 2026: rows, then columns, with clamped sums, after a row shift."""
    M = (L - L.amax(-1, keepdim=True)).exp()
    for _ in range(iterations):
        M = M / M.sum(-1, keepdim=True).clamp(min=eps)
        M = M / M.sum(-2, keepdim=True).clamp(min=eps)
    return M


def test_named_variants():
    L = logits(4, 8.0)
    stored = v4(L, 20)
    close = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(residual_matrix(L, 20, "additive", "deepseek_v4"), stored.mT, **close)
    torch.testing.assert_close(residual_matrix(L, 20, "additive", "column_last"), stored, **close)
    torch.testing.assert_close(residual_matrix(L, 20, "clamp", "column_last"), megatron(L, 20), **close)
    torch.testing.assert_close(residual_matrix(L, 20, "none", "deepseek_v4"), sinkhorn(L.mT, 20), **close)
    assert (residual_matrix(L, 20, "none", "column_last") - sinkhorn(L, 20)).abs().max() > 1e-3
