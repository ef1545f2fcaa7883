"""HC's and FC's reads with backward by hand, against the formulas in fp64 followed by autograd."""

import itertools

import pytest
import torch

from hcmegatron import connection
from hcmegatron.connections import accounting
from hcmegatron.connections.predictor_norm import normalise
from hcmegatron.kernels import torch_hyper
from hcmegatron.kernels.torch_hyper import Norm
from tests.connections.small_network import config
from tests.kernels.reference import leaf, strided

NORMS = ("layernorm", "rmsnorm", "layernorm_plain", "rmsnorm_plain")


def given(T, n, C, K, m, size=1.0, seed=0):
    """H, static, scale, weight and W, of fp64, and gradients of the coefficients, x and H."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(T, n, C), (K, n), (K,), (C,), (C, K), (T, K, n), (T, m, C), (T, n, C)]
    drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    drawn[0] *= size
    drawn[4] *= C**-0.5
    drawn[7] /= size  # as large as what comes back to the streams through the norm
    return drawn[:5], drawn[5:]


def by_hand(H, static, scale, weight, W, *, norm, eps, tanh, m):
    return torch_hyper.read(H, static, scale, weight, W, Norm(norm.startswith("layernorm"), eps, tanh), m)


def formulas(H, static, scale, weight, W, *, norm, eps, tanh, m):
    z = (normalise(H.to(W.dtype), norm, weight, eps) @ W).mT
    found = static + scale.unsqueeze(-1) * (torch.tanh(z) if tanh else z)
    return found, found[:, :m] @ H.to(W.dtype), H


def both(leaves, gradients, cast=lambda t: t, **options):
    """Outputs and gradients: by hand on leaves that are cast, by the formulas in fp64 on the same numbers."""
    results = []
    for run, to in ((by_hand, cast), (formulas, lambda t: cast(t).double())):
        own = [leaf(to(t)) for t in leaves]
        if options["norm"].endswith("plain"):
            own[3] = None
        out = run(*own, **options)
        held = [t for t in own if t is not None]
        grads = torch.autograd.grad(out, held, [g.to(o.dtype) for g, o in zip(gradients, out, strict=True)])
        results.append([*out, *grads])
    return zip(*results, strict=True)


def near(pairs, tolerance):
    for got, want in pairs:
        assert got.shape == want.shape
        if want.numel():
            assert (got.double() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-300)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize(
    ("T", "n", "C", "K", "m"), [(0, 4, 8, 6, 1), (1, 1, 12, 3, 1), (7, 4, 20, 9, 4), (5, 2, 3, 4, 1)]
)
def test_fp64(norm, tanh, T, n, C, K, m):
    leaves, gradients = given(T, n, C, K, m)
    near(both(leaves, gradients, norm=norm, eps=1e-6, tanh=tanh, m=m), 1e-12)


@pytest.mark.parametrize("norm", NORMS[:2])
def test_fp32(norm):
    leaves, gradients = given(33, 4, 130, 6, 1)
    near(both(leaves, gradients, torch.Tensor.float, norm=norm, eps=1e-6, tanh=True, m=1), 1e-5)


@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize(("size", "eps"), [(1e-30, 0.0), (1e-12, 1e-20), (1e12, 1e-6), (1e30, 1e-6)])
def test_streams_of_any_size(norm, size, eps):
    leaves, gradients = given(5, 3, 12, 5, 1, size)
    near(both(leaves, gradients, torch.Tensor.float, norm=norm, eps=eps, tanh=True, m=1), 1e-4)


@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_streams_without_a_direction(norm, eps):
    leaves, gradients = given(4, 3, 8, 5, 1)
    leaves[0][1] = 0.0
    leaves[0][2, 1] = 3.0 if norm == "layernorm" else 0.0
    pairs = list(both(leaves, gradients, norm=norm, eps=eps, tanh=True, m=1))
    assert all(got.isfinite().all() for got, _ in pairs)
    near(pairs[:3], 1e-12)


def test_a_mean_far_from_zero():
    """A LayerNorm takes it off before anything is multiplied."""
    leaves, gradients = given(9, 4, 64, 6, 1)
    leaves[0] += 1e3
    near(
        itertools.islice(
            both(leaves, gradients, torch.Tensor.float, norm="layernorm", eps=1e-6, tanh=True, m=1), 1
        ),
        1e-4,
    )


def test_bf16_streams_are_rounded_once():
    leaves, gradients = given(9, 4, 24, 6, 1)
    cast = iter((torch.bfloat16, *(4 * [torch.float32]))).__next__
    own = [leaf(t.to(cast())) for t in leaves]
    exact = [leaf(t.double()) for t in own]
    options = {"norm": "layernorm", "eps": 1e-6, "tanh": True, "m": 1}
    gradients[1:] = [g.bfloat16() for g in gradients[1:]]
    low, truth = by_hand(*own, **options), formulas(*exact, **options)
    grads = torch.autograd.grad(low, own, [g.to(o.dtype) for g, o in zip(gradients, low, strict=True)])
    wanted = torch.autograd.grad(truth, exact, [g.double() for g in gradients])
    for got, want in ((low[1], truth[1]), (grads[0], wanted[0])):
        assert got.dtype == torch.bfloat16
        bound = 2.0**-8 * want.abs() + 1e-5 * want.abs().max()
        assert ((got.double() - want).abs() <= bound).all()
    near(zip(grads[1:], wanted[1:], strict=True), 1e-5)


def test_gradcheck():
    leaves, _ = given(2, 2, 3, 4, 1)
    options = {"norm": "layernorm", "eps": 1e-3, "tanh": True, "m": 1}
    assert torch.autograd.gradcheck(lambda *own: by_hand(*own, **options), [leaf(t) for t in leaves])


def test_layouts_in_memory_and_outputs_that_reach_no_loss():
    leaves, _ = given(4, 3, 8, 5, 2)
    options = {"norm": "rmsnorm", "eps": 1e-6, "tanh": True, "m": 2}
    plain, other = (by_hand(*(view(t) for t in leaves), **options) for view in (leaf, strided))
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b)
    own = [leaf(t) for t in leaves]
    for out in by_hand(*own, **options):
        grads = torch.autograd.grad(out.sum(), own, retain_graph=True, allow_unused=True)
        assert grads[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["shc", "dhc", "sfc", "dfc"])
def test_keeps_the_streams_once_and_what_the_planner_says(kind, dtype):
    """Of a read and a write: y, parameters and what is made of parameters alone do not grow with the tokens."""
    C, kept = 32, []
    own = connection(kind, hidden_size=C, n=4, stream_dtype=dtype, kernels="torch")
    for T in (8, 24):
        H = torch.randn(T, 1, 1 if kind.endswith("fc") else 4, C).to(dtype).requires_grad_()
        y = torch.randn(T, 1, C).to(dtype)
        held = {}

        def pack(t, y=y, held=held):
            if t.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
                held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            _, coefficients = own.read(H)
            own.write(H, y, coefficients)
        kept.append(sum(held.values()))
    assert (kept[1] - kept[0]) / 16 == accounting.saved_bytes(config(kind, n=4), C, dtype.itemsize)
