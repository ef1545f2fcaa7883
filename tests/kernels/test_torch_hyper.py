"""HC's and FC's reads with backward by hand, by torch and in C, against the formulas in fp64 followed by autograd."""

import pytest
import torch

from hcmegatron import connection
from hcmegatron.connections import accounting
from hcmegatron.connections.predictor_norm import normalise
from hcmegatron.kernels import torch_hyper
from hcmegatron.kernels.native import hyper as native_hyper
from hcmegatron.kernels.native.library import obstacle
from hcmegatron.kernels.torch_hyper import Norm
from tests.connections.small_network import config
from tests.kernels.reference import leaf, rounded_once, strided

NORMS = ("layernorm", "rmsnorm", "layernorm_plain", "rmsnorm_plain")
PATHS = {"torch": torch_hyper.read}
if obstacle(1, "hyper") is None:
    PATHS["native"] = native_hyper.read
LAYERNORM = {"norm": "layernorm", "eps": 1e-6, "tanh": True}
by_every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def given(T, n, C, m, size=1.0, seed=0):
    """H, weight, s_a, s_b, three static parts and their projections, of fp64, and gradients of mix, carry, post, x and
    H. With m = 1 the first is HC's A_m and has a projection of its own, otherwise FC's Y."""
    g = torch.Generator().manual_seed(seed)
    first = [(n,), (n, n), (n,), (C,), (C, n), (C,)] if m == 1 else [(n, m), (n, n), (n,), (C, m + n), (C,)]
    shapes = [(T, n, C), (C,), (1,), (1,), *first]
    outputs = [(T, m, n), (T, n, n), (T, n), (T, m, C), (T, n, C)]
    drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes + outputs]
    leaves, gradients = drawn[: len(shapes)], drawn[len(shapes) :]
    leaves[0] *= size
    for projection in leaves[7:]:
        projection *= C**-0.5
    gradients[-1] /= size  # as large as what comes back to the streams through the norm
    return leaves, gradients


def by(path, H, weight, s_a, s_b, *parts, norm, eps, tanh):
    """Of FC, whose fractions lie in one stream, with x as its m parts again."""
    kind = Norm(norm.startswith("layernorm"), eps, tanh)
    (T, n, C), fractions = H.shape, parts[0].dim() == 2
    streams = H.reshape(T, 1, n * C) if fractions else H
    mix, carry, post, x, streams = path(streams, parts[:3], parts[3:], (s_a, s_b), weight, kind)
    assert mix.shape == (T, *parts[0].shape[::-1])
    mix = mix.unsqueeze(1) if mix.dim() == 2 else mix
    return mix, carry, post, x.view(T, mix.shape[1], C), streams.view(T, n, C)


def formulas(H, weight, s_a, s_b, *parts, norm, eps, tanh):
    W = torch.cat([part.view(len(part), -1) for part in parts[3:]], 1)
    static = torch.cat([part.view(len(part), -1) for part in parts[:3]], 1)
    z = normalise(H.to(W.dtype), norm, weight, eps) @ W
    scale = torch.cat([s_a.expand(W.shape[1] - 1), s_b])
    found = (static + scale * (torch.tanh(z) if tanh else z)).mT
    n = len(static)
    mix, carry, post = found.split([W.shape[1] - n - 1, n, 1], 1)
    return mix, carry, post.squeeze(1), mix @ H.to(W.dtype), H


def with_gradients(run, leaves, gradients, **options):
    """Outputs and gradients of everything; of a plain norm without a weight's."""
    own = [leaf(t) for t in leaves]
    if options["norm"].endswith("plain"):
        own[1] = None
    out = run(*own, **options)
    held = [t for t in own if t is not None]
    return [
        *out,
        *torch.autograd.grad(out, held, [g.to(o.dtype) for g, o in zip(gradients, out, strict=True)]),
    ]


def both(path, leaves, gradients, cast=lambda t: t, **options):
    """By this path on leaves that are cast, by the formulas in fp64 on the same numbers."""
    cast_leaves = [cast(t) for t in leaves]
    mine = with_gradients(lambda *own, **kind: by(path, *own, **kind), cast_leaves, gradients, **options)
    exact = with_gradients(formulas, [t.double() for t in cast_leaves], gradients, **options)
    return list(zip(mine, exact, strict=True))


def near(pairs, tolerance, least=1e-300):
    """Within `tolerance` of each tensor's largest number, or of `least`: sums over tokens may cancel."""
    for got, want in pairs:
        assert got.shape == want.shape
        if want.numel():
            assert (got.double() - want).abs().max() <= tolerance * want.abs().max().clamp(min=least)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize(("T", "n", "C", "m"), [(0, 4, 8, 1), (1, 1, 12, 1), (7, 4, 20, 4), (5, 2, 3, 1)])
def test_fp64(norm, tanh, T, n, C, m):
    leaves, gradients = given(T, n, C, m)
    near(both(torch_hyper.read, leaves, gradients, norm=norm, eps=1e-6, tanh=tanh), 1e-12)


@by_every_path
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("fractions", [False, True], ids=["hc", "fc"])
@pytest.mark.parametrize(
    ("T", "n", "C"), [(33, 4, 130), (1, 1, 16), (35, 3, 48), (19, 2, 16), (9, 4, 128), (5, 8, 32)]
)
def test_fp32(path, norm, tanh, fractions, T, n, C):
    leaves, gradients = given(T, n, C, n if fractions else 1)
    near(both(path, leaves, gradients, torch.Tensor.float, norm=norm, eps=1e-6, tanh=tanh), 2e-5, least=1.0)


@by_every_path
@pytest.mark.parametrize("size", [1e-5, 1e-2, 0.3, 3.0, 100.0])
def test_tanh_of_any_size(path, size):
    """Of sums that do not cancel, each number relative to itself: small ones have to be right, too."""
    leaves, gradients = given(40, 4, 16, 1)
    leaves = [t.abs() for t in leaves]
    for at in (4, 5, 6):
        leaves[at].zero_()
    for at in (7, 8, 9):
        leaves[at] *= size
    pairs = both(path, leaves, gradients, torch.Tensor.float, norm="rmsnorm", eps=1e-6, tanh=True)
    for got, want in pairs[:3]:
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0)


def test_c_computes_what_it_is_for(monkeypatch):
    """Were everything handed on to torch's, the other tests would not tell."""
    if "native" not in PATHS:
        pytest.skip("not compiled")
    monkeypatch.setattr(torch_hyper, "read", lambda *given: "torch's")
    for T, n, C, m, cast in ((3, 4, 16, 1, "float"), (3, 4, 32, 4, "bfloat16")):
        H, weight, s_a, s_b, *parts = (t.float() for t in given(T, n, C, m)[0])
        H = getattr(H, cast)()
        kind = {"weight": weight, "norm": Norm(True, 1e-6, True)}
        assert len(native_hyper.read(H, parts[:3], parts[3:], (s_a, s_b), **kind)) == 5
        for other in (H[..., :15], H.half(), H.float() * 1e25, torch.full_like(H, torch.nan)):
            cut = [part[: other.shape[-1]] for part in parts[3:]]
            kind["weight"] = weight[: other.shape[-1]]
            assert native_hyper.read(other, parts[:3], cut, (s_a, s_b), **kind) == "torch's"


@by_every_path
@pytest.mark.parametrize("C", [12, 16])
@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize(("size", "eps"), [(1e-30, 0.0), (1e-12, 1e-20), (1e12, 1e-6), (1e30, 1e-6)])
def test_streams_of_any_size(path, norm, size, eps, C):
    leaves, gradients = given(5, 3, C, 1, size)
    near(both(path, leaves, gradients, torch.Tensor.float, norm=norm, eps=eps, tanh=True), 1e-4)


@by_every_path
@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_streams_without_a_direction(path, norm, eps):
    leaves, gradients = given(4, 3, 16, 1)
    leaves[0][1] = 0.0
    leaves[0][2, 1] = 3.0 if norm == "layernorm" else 0.0
    for cast, tolerance in ((torch.Tensor.double, 1e-12), (torch.Tensor.float, 1e-5)):
        pairs = both(path, leaves, gradients, cast, norm=norm, eps=eps, tanh=True)
        assert all(got.isfinite().all() for got, _ in pairs)
        near(pairs[:4], tolerance)


@by_every_path
def test_a_mean_far_from_zero(path):
    """A LayerNorm takes it off before anything is multiplied."""
    leaves, gradients = given(9, 4, 64, 1)
    leaves[0] += 1e3
    near(both(path, leaves, gradients, torch.Tensor.float, **LAYERNORM)[:3], 1e-4)


@by_every_path
@pytest.mark.parametrize(("C", "m"), [(24, 1), (48, 1), (16, 4)])
def test_bf16_streams_are_rounded_once(path, C, m):
    leaves, gradients = given(9, 4, C, m)
    leaves = [leaves[0].bfloat16(), *(t.float() for t in leaves[1:])]
    gradients[3:] = [g.bfloat16() for g in gradients[3:]]
    pairs = both(path, leaves, gradients, **LAYERNORM)
    for got, want in (pairs[3], pairs[5]):
        assert got.dtype == torch.bfloat16
        rounded_once(got, want)
    near(pairs[:3] + pairs[6:], 1e-5)


def test_gradcheck():
    leaves, _ = given(2, 2, 3, 1)
    options = {"norm": "layernorm", "eps": 1e-3, "tanh": True}
    assert torch.autograd.gradcheck(
        lambda *own: by(torch_hyper.read, *own, **options), [leaf(t) for t in leaves]
    )


@by_every_path
@pytest.mark.parametrize("m", [1, 3])
def test_layouts_in_memory(path, m):
    leaves, gradients = given(4, 3, 16, m)
    results = []
    for view in (leaf, strided):
        own = [view(t.float()) for t in leaves]
        out = by(path, *own, **LAYERNORM)
        given_back = [view(g.float()).detach() for g in gradients]
        results.append([*out, *torch.autograd.grad(out, own, given_back)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@by_every_path
@pytest.mark.parametrize("m", [1, 3])
def test_outputs_that_reach_no_loss(path, m):
    leaves, _ = given(4, 3, 16, m)
    made = []
    for run, dtype in (
        (lambda *own, **kind: by(path, *own, **kind), torch.float32),
        (formulas, torch.float64),
    ):
        own = [leaf(t.to(dtype)) for t in leaves]
        made.append(
            [
                grad
                for out in run(*own, **LAYERNORM)[:4]
                for grad in torch.autograd.grad(
                    out.square().sum(), own, retain_graph=True, materialize_grads=True
                )
            ]
        )
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


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
