"""The predictors' norm at the ends of fp32's range."""

import pytest
import torch

from hcmegatron.connections.predictor_norm import normalise

KINDS = ("rmsnorm", "layernorm")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-6, 1e-20, 0.0])
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e-10, 1e10, 1e20, 1e37])
def test_norms_of_any_size(kind, eps, size):
    """Against fp64: the output, and the gradient in units of its largest entry. The token of ordinary size beside it
    keeps its bits."""
    g = torch.Generator().manual_seed(0)
    ordinary, weight = torch.randn(1, 24, generator=g), torch.randn(24, generator=g)
    x = torch.cat([ordinary, ordinary / ordinary.abs().max() * size]).requires_grad_()
    out = normalise(x, kind, weight, eps)
    exact = x.detach().double().requires_grad_()
    truth = normalise(exact, kind, weight.double(), eps)
    (got,), (want,) = (torch.autograd.grad(o.cumsum(-1).sum(), i) for o, i in ((out, x), (truth, exact)))
    assert torch.equal(out[:1], normalise(ordinary, kind, weight, eps))
    for low, high in ((out, truth), (got, want)):
        unit = high.abs().amax(-1, keepdim=True)
        assert ((low.double() - high).abs() < 1e-5 * unit).all()


@pytest.mark.parametrize(
    ("kind", "value"), [("rmsnorm", 0.0), ("layernorm", 0.0), ("layernorm", 1.0), ("layernorm", 2.0**66)]
)
def test_a_token_without_a_direction_is_zero(kind, value):
    """Zeros, and to a LayerNorm equal numbers, with an epsilon or without."""
    for eps in (0.0, 1e-6):
        x = torch.full((2, 24), value, requires_grad=True)
        out = normalise(x, kind, None, eps)
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
