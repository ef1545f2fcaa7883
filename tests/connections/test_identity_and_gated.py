"""ihc and gr by their formulas, written a second time, token by token and stream by stream: forward, every gradient,
and what their initial values promise."""

import math
from contextlib import contextmanager

import pytest
import torch

from hcmegatron.connections.build import build_connection, parameter_of
from hcmegatron.connections.connection_matrix import connection_matrix
from hcmegatron.connections.gated import gated_read
from hcmegatron.kernels import torch_gated
from tests.connections.small_network import Network, config, randomise, tokens

S, B, C = 4, 2, 8
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def built(conn, norm_eps=1e-2, index=1):
    return randomise(build_connection(conn, C, index, norm_eps=norm_eps, dtype=torch.float64))


def given(n, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((S, B, n, C), (S, B, C), (C,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def ihc_token(H, y, p, conn, eps):
    """(x, H') of one token's streams H [n][C]."""
    n = len(H)
    Hv = torch.cat(list(H))
    mean_square = (Hv * Hv).sum() / (n * C)
    if not conn.rms_scaling:
        r = torch.ones(())
    else:
        r = {"none": mean_square**0.5, "inside": (mean_square + eps) ** 0.5, "added": mean_square**0.5 + eps}
        r = r[conn.rms_eps]
    x, out = 0, []
    for i in range(n):
        l_pre = p["alpha_pre"] * (Hv * p["phi"][:, i]).sum() / r + p["b_pre"][i]
        l_post = p["alpha_post"] * (Hv * p["phi"][:, n + i]).sum() / r + p["b_post"][i]
        x = x + (1 / (1 + torch.exp(-l_pre)) + conn.pre_eps) * H[i]
        out.append(H[i] + (2 / (1 + torch.exp(-l_post)) + conn.post_eps) * y)
    return x, torch.stack(out)


def gr_token(R, y, p, conn, eps):
    """The same of gr."""
    n = len(R)
    Rh = [p["gamma"][i] * R[i] / ((R[i] * R[i]).sum() / C + eps) ** 0.5 for i in range(n)]
    v = torch.cat(Rh)
    z = torch.stack([(v * column).sum() / n for column in p["W_d"].unbind(1)])
    hidden = z / (1 + torch.exp(-z))
    x, out = 0, []
    for i in range(n):
        gate = 1 / (1 + torch.exp(-(hidden.unsqueeze(1) * p["W_u"][:, i * C : (i + 1) * C]).sum(0)))
        x = x + gate * Rh[i] / n
        out.append(R[i] + 2 / (1 + torch.exp(-(v * p["W_w"][:, i]).sum() / n)) * y)
    return x, torch.stack(out)


CASES = [
    *(("ihc", {"n": n}) for n in (1, 3, 4)),
    *(("ihc", {"n": 2, "rms_eps": eps, "pre_eps": 1e-2, "post_eps": 1e-3}) for eps in ("inside", "added")),
    ("ihc", {"n": 3, "rms_scaling": False, "pre_init": "mhc"}),
    *(("gr", {"n": n}) for n in (1, 3, 4)),
    ("gr", {"n": 2, "gate_rank": 5}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda v: str(v))
def test_formulas_and_every_gradient(kind, fields):
    """x feeds a nonlinear T, whose output is written back, so that every use of every coefficient counts."""
    conn, token = config(kind, **fields), {"ihc": ihc_token, "gr": gr_token}[kind]
    connection = built(conn)
    H, weight, bias = given(conn.n)
    leaves = [H, bias, *connection.parameters()]
    x, coefficients = connection.read(H)
    out = connection.write(H, torch.tanh(x * weight), coefficients, bias)
    p = dict(connection.named_parameters())

    def one(s, b):
        x, _ = token(H[s, b], torch.zeros_like(bias), p, conn, 1e-2)
        return x, token(H[s, b], torch.tanh(x * weight[s, b]) + bias, p, conn, 1e-2)[1]

    rows = [[one(s, b) for b in range(B)] for s in range(S)]
    truth = [torch.stack([torch.stack([pair[at] for pair in row]) for row in rows]) for at in (0, 1)]
    wanted = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    for got, want in zip((x, out), truth, strict=True):
        torch.testing.assert_close(got, want, **EXACT)
    mine = torch.autograd.grad((out * wanted).sum() + x.sum(), leaves)
    theirs = torch.autograd.grad((truth[1] * wanted).sum() + truth[0].sum(), leaves)
    for got, want in zip(mine, theirs, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_the_formulas_for_autograd_are_those_of_the_path():
    conn = config("gr", n=3)
    p = dict(built(conn).named_parameters())
    H = given(3)[0]
    weights = [p[name] for name in ("gamma", "W_d", "W_u", "W_w")]
    x, G, s = gated_read(H, *weights, 1e-2)
    mine = torch_gated.read(H.flatten(0, 1), *weights, 1e-2)
    for got, want in zip(mine, (x, s, G.mean(-1) / 3, H), strict=True):
        torch.testing.assert_close(got, want.flatten(0, 1), **EXACT)
    assert not mine[2].requires_grad


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e25])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_gated_streams_of_any_size(size, eps):
    """fp32 squares of the first and the last leave its range; against fp64, forward and gradients over the size."""
    g = torch.Generator().manual_seed(0)
    R = torch.randn(5, 3, C, generator=g, dtype=torch.float64) * size
    R[1, 2] = 0.0
    R = R.float()
    p = [t.detach().float() for t in built(config("gr", n=3)).parameters()]

    def run(read, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (R, *p)]
        x, s, *_ = read(*leaves, eps)
        dR, *others = torch.autograd.grad(x.sum() + (s * s).sum(), leaves)
        return [x, s, dR.double() * size, *others]

    def formulas(R, gamma, W_d, W_u, W_w, eps):
        x, _, s = gated_read(R, gamma, W_d, W_u, W_w, eps)
        return x, s

    for got, want in zip(run(torch_gated.read, torch.float32), run(formulas, torch.float64), strict=True):
        assert got.isfinite().all()
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1)


def test_ihc_begins_one_hot_and_gr_with_flat_gates():
    """Sub-layer k reads stream k mod n, or more of it; every stream receives y once."""
    for k in (0, 3, 6):
        H = tokens(s=3, b=1, C=4 * C).unflatten(-1, (4, C))
        _, (pre, post, *_) = build_connection(config("ihc"), C, k, norm_eps=0.0, dtype=torch.float64).read(H)
        expected = torch.full((4,), 1 / (1 + math.exp(5)), dtype=torch.float64)
        expected[k % 4] = 1 / (1 + math.exp(-5))
        torch.testing.assert_close(pre, expected.expand_as(pre), **EXACT)
        torch.testing.assert_close(post, torch.ones_like(post), **EXACT)
        gr = build_connection(config("gr"), C, k, norm_eps=0.0, dtype=torch.float64)
        _, (pre, post, *_) = gr.read(H)
        torch.testing.assert_close(pre, torch.full_like(pre, 1 / 8), **EXACT)
        torch.testing.assert_close(post, torch.ones_like(post), **EXACT)
        assert gr.gamma[:, 0].argmax() == k % 4 and gr.gamma.mean().item() == pytest.approx(2)


def test_ihc_with_mhcs_biases_reads_and_writes_as_mhc_does():
    for k in range(5):
        ihc, mhc = (
            build_connection(config(kind, pre_init="mhc"), C, k, norm_eps=0.0) for kind in ("ihc", "mhc")
        )
        assert torch.equal(ihc.b_pre, mhc.b_pre) and torch.equal(ihc.b_post, mhc.b_post)


def test_ihc_is_mhc_without_its_matrix():
    """With the same parameters, bit for bit: mHC's own ablation."""
    ihc, mhc = (built(config(kind, **f)) for kind, f in (("ihc", {}), ("mhc", {"use_res": False})))
    mhc.load_state_dict(ihc.state_dict())
    H, y, bias = given(4)
    for a, b in ((ihc, mhc), (mhc, ihc)):
        outs = []
        for connection in (a, b):
            x, c = connection.read(H)
            out = connection.write(H, y, c, bias)
            outs.append((x, out, *torch.autograd.grad(out.sum() + x.square().sum(), (H, y, bias))))
        assert all(torch.equal(p, q) for p, q in zip(*outs, strict=True))


@contextmanager
def kept_sizes():
    """Numbers in each tensor that autograd saves."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        yield sizes


def test_an_identity_carry_is_not_multiplied():
    """The write keeps y and its factors, none of the streams, and gives their gradient back as it came."""
    for kind in ("ihc", "gr"):
        connection, (H, y, _) = built(config(kind, n=3)), given(3)
        _, coefficients = connection.read(H)
        coefficients = tuple(c.detach().requires_grad_() for c in coefficients)
        with kept_sizes() as kept:
            out = connection.write(H, y, coefficients)
        assert sorted(kept) == [S * B * 3, S * B * C]
        d = torch.randn_like(out)
        assert torch.equal(torch.autograd.grad(out, coefficients[3], d)[0], d)


def test_gr_normalises_and_its_matrix_is_that_of_its_factors():
    """Where all streams are equal, the connection matrix of initial values is the pre-norm one times the gates."""
    network, coefficients = Network(config("gr", n=4)), []
    network(tokens(), coefficients=coefficients)
    matrix = connection_matrix(coefficients, mean=True)
    torch.testing.assert_close(matrix[..., -1, :-1], torch.ones_like(matrix[..., -1, :-1]), **EXACT)


def test_optimizer_roles():
    """Muon takes ihc's projection; gr's are AdamW's (2608.30320)."""
    roles = {
        kind: {name: parameter_of(p).optimizer_role for name, p in built(config(kind)).named_parameters()}
        for kind in ("ihc", "gr")
    }
    assert [name for name, role in roles["ihc"].items() if role == "matrix"] == ["phi"]
    assert set(roles["gr"].values()) == {"adamw"}


@pytest.mark.parametrize(("asked", "found"), [(0, 1), (3, 3)])
def test_the_rank_is_an_eighth_of_the_width(asked, found):
    """Of 8 channels."""
    assert built(config("gr", gate_rank=asked)).W_u.shape == (found, 4 * C)
    assert build_connection(config("gr"), 64, 0, norm_eps=0.0).W_d.shape == (256, 8)
