"""One connection at a time: gradcheck of every kind and variant, dtypes, bias and dropout, odd shapes."""

import pytest
import torch

from hcmegatron.connections.accounting import streams
from hcmegatron.connections.build import build_connection, build_contract
from hcmegatron.connections.connection import Connection
from hcmegatron.connections.expand_contract import expand
from hcmegatron.connections.kinds import KINDS as KINDS_BY_NAME
from tests.connections.small_network import KINDS, config, randomise, some

VARIANTS = [
    *(some(kind, n) for kind in KINDS for n in (1, 3)),
    *(config("dhc", n=2, norm=norm) for norm in ("layernorm", "layernorm_plain", "rmsnorm_plain")),
    config("dhc", n=2, tanh=False),
    config("dfc", n=2, tanh=False, norm="layernorm"),
    *(config("mhc", n=2, sinkhorn_eps=eps) for eps in ("additive", "clamp")),
    *(config("mhc", n=2, rms_eps=eps) for eps in ("inside", "added")),
    *(config("mhc", n=2, res_orientation=o) for o in ("deepseek_v4", "column_last")),
    config("mhc", n=2, pre_eps=1e-6),
    config("mhc", n=2, use_pre=False),
    config("mhc", n=2, use_post=False),
    config("mhc", n=2, use_res=False),
    config("mhc", n=2, use_pre=False, use_post=False, use_res=False),
]


def name_of(conn):
    default = config(conn.kind)
    changed = [f"{k}={v}" for k, v in vars(conn).items() if v != getattr(default, k) and k != "n"]
    return "-".join([conn.kind, str(conn.n), *changed])


def streams_like(conn, C=6, s=3, b=1, dtype=torch.float64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(s, b, streams(conn), C, generator=generator, dtype=torch.float64).to(dtype)


def built(conn, C=6, dtype=torch.float64, index=1):
    return randomise(build_connection(conn, C, index, norm_eps=1e-6, dtype=dtype))


@pytest.mark.parametrize("conn", VARIANTS, ids=name_of)
def test_gradcheck(conn):
    """Gradients with respect to streams, output, bias and every parameter, through read and write
    together."""
    connection = built(conn)
    names = [name for name, _ in connection.named_parameters()]

    def apply(H, y, bias, *parameters):
        def run(H, y, bias):
            x, c = connection.read(H)
            return x, connection.write(H, y + x.square(), c, bias)

        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(Both(connection, run), replaced, (H, y, bias))

    H, y = streams_like(conn), streams_like(conn, seed=4)[..., 0, :]
    inputs = [H, y, torch.linspace(-1, 1, 6, dtype=torch.float64), *connection.parameters()]
    assert torch.autograd.gradcheck(apply, [t.detach().clone().requires_grad_() for t in inputs])


class Both(torch.nn.Module):
    """A callable that runs with a connection's parameters replaced."""

    def __init__(self, connection, run):
        super().__init__()
        for name, p in connection.named_parameters():
            self.register_parameter(name, p)
        self.connection, self.run = connection, run

    def forward(self, H, y, bias):
        original = {name: self.connection._parameters[name] for name in self._parameters}
        self.connection._parameters.update(self._parameters)
        try:
            return self.run(H, y, bias)
        finally:
            self.connection._parameters.update(original)


@pytest.mark.parametrize("contract", ["sum", "mean", "head"])
def test_gradcheck_of_contract(contract):
    conn = config("mhc", n=3, contract=contract)
    module = randomise(build_contract(conn, 4, norm_eps=1e-6, dtype=torch.float64))
    H = streams_like(conn, C=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda H, *_: module(H), [H, *module.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_residual_words(kind):
    """x = pre H and H' = res H + post y, as Coefficients says; residual is H + y bit for bit."""
    conn = config(kind, n=2)
    connection, H = built(conn), streams_like(conn)
    y = streams_like(conn, seed=4)[..., 0, :]
    x, c = connection.read(H)
    out = connection.write(H, y, c)
    if c == ():
        assert torch.equal(out, H + y.unsqueeze(-2)) and torch.equal(x, H.squeeze(-2)) and c == ()
        return
    pre, post, res, *_ = c if len(c) > 2 else (*c, torch.eye(2, dtype=H.dtype))
    if H.shape[-2] == 1:  # fractions
        H, y, x, out = (t.reshape(3, 1, 2, 3) for t in (H, y, x, out))
        expected = torch.einsum("...oi,...ic->...oc", pre, H)
        added = post.unsqueeze(-1) * y
    else:
        expected = torch.einsum("...i,...ic->...c", pre, H)
        added = post.unsqueeze(-1) * y.unsqueeze(-2)
    if not KINDS_BY_NAME[kind].normalises:
        torch.testing.assert_close(x, expected)
    torch.testing.assert_close(out, torch.einsum("...oi,...ic->...oc", res, H) + added)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_write_is_carry_plus_post(kind):
    """What kinds with kernels do in one pass is what the contract's parts do."""
    conn = config(kind, n=2)
    connection, H, y = built(conn), streams_like(conn), streams_like(conn, seed=4)[..., 0, :]
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    _, c = connection.read(H)
    carried = connection.carry(H, c)
    assert torch.equal(carried, H) == (KINDS_BY_NAME[kind].carry == "identity")
    torch.testing.assert_close(connection.write(H, torch.zeros_like(y), c), carried)
    if H.shape[-2] > 1 or c == ():
        torch.testing.assert_close(
            Connection.write(connection, H, y, c, bias), connection.write(H, y, c, bias)
        )


def test_hyper_formulas_literally():
    """DHC of one token, element by element from the paper's words."""
    connection = built(config("dhc", n=2), C=4)
    H = streams_like(config("dhc", n=2), C=4, s=1)
    y = torch.ones(1, 1, 4, dtype=torch.float64)
    _, c = connection.read(H)
    out = connection.write(H, y, c)[0, 0]
    H = H[0, 0]
    p = dict(connection.named_parameters())
    Hn = H / (H.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p["norm_weight"]
    for j in range(2):
        expected = torch.zeros(4, dtype=torch.float64)
        for i in range(2):
            expected += (p["A_r"][i, j] + p["s_a"] * torch.tanh(Hn[i] @ p["W_r"][:, j])) * H[i]
        expected += (p["B"][j] + p["s_b"] * torch.tanh(Hn[j] @ p["W_b"])) * y[0, 0]
        torch.testing.assert_close(out[j], expected)


@pytest.mark.parametrize("orientation", ["paper", "deepseek_v4", "column_last"])
@pytest.mark.parametrize("rms_eps", ["none", "inside", "added"])
def test_manifold_formulas_literally(orientation, rms_eps):
    conn = config("mhc", n=2, res_orientation=orientation, rms_eps=rms_eps, sinkhorn_iterations=3)
    connection, H = built(conn, C=4), streams_like(conn, C=4, s=1)
    _, (pre, post, res, *_) = connection.read(H)
    p = dict(connection.named_parameters())
    Hv = H.reshape(-1)
    mean = Hv.square().mean()
    r = {"none": mean.sqrt(), "inside": (mean + 1e-6).sqrt(), "added": mean.sqrt() + 1e-6}[rms_eps]
    t = Hv @ p["phi"] / r
    torch.testing.assert_close(pre[0, 0], torch.sigmoid(p["alpha_pre"] * t[:2] + p["b_pre"]))
    torch.testing.assert_close(post[0, 0], 2 * torch.sigmoid(p["alpha_post"] * t[2:4] + p["b_post"]))
    M = (p["alpha_res"] * t[4:].view(2, 2) + p["b_res"]).exp()
    for _ in range(3):
        for dim in (-2, -1) if orientation == "paper" else (-1, -2):
            M = M / M.sum(dim, keepdim=True)
    torch.testing.assert_close(res[0, 0], M.mT if orientation == "deepseek_v4" else M)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_low_precision_streams_round_once(kind, dtype, with_bias):
    """Against fp64 on the same rounded streams: half a unit in the last place of the result, plus fp32's own
    error."""
    conn = config(kind, n=2)
    low, exact = built(conn, dtype=torch.float32), built(conn, dtype=torch.float32).double()
    H, y = streams_like(conn, s=40, dtype=dtype), streams_like(conn, s=40, dtype=dtype, seed=4)[..., 0, :]
    bias = torch.linspace(-1, 1, 6).to(dtype) if with_bias else None
    x, c = low.read(H)
    out = low.write(H, y, c, bias)
    x64, c64 = exact.read(H.double())
    out64 = exact.write(H.double(), y.double(), c64, bias.double() if with_bias else None)
    assert x.dtype == out.dtype == dtype and all(t.dtype == torch.float32 for t in c[:3])
    unit = torch.finfo(dtype).eps / 2
    for got, want in ((x, x64), (out, out64)):
        assert ((got.double() - want).abs() <= unit * want.abs() * 1.001 + 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_and_one_token(kind):
    conn = some(kind, 3)
    for s in (0, 1):
        connection, H = built(conn), streams_like(conn, s=s).requires_grad_()
        x, c = connection.read(H)
        out = connection.write(H, x, c, torch.ones(6, dtype=torch.float64))
        out.sum().backward()
        assert x.shape == (s, 1, 6) and out.shape == H.shape and H.grad.shape == H.shape


def test_a_token_of_zeros_is_finite():
    for rms_eps in ("none", "inside", "added"):
        connection = built(config("mhc", rms_eps=rms_eps))
        H = torch.zeros(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
        x, c = connection.read(H)
        connection.write(H, x, c).sum().backward()
        assert H.grad.isfinite().all() and all(p.grad.isfinite().all() for p in connection.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_bias_and_dropout(kind):
    conn = config(kind, n=2)
    connection, H = built(conn), streams_like(conn)
    y, bias = streams_like(conn, seed=4)[..., 0, :], torch.arange(6, dtype=torch.float64)
    _, c = connection.read(H)
    torch.testing.assert_close(connection.write(H, y, c, bias), connection.write(H, y + bias, c))
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(y + bias, 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(connection.write(H, y, c, bias, 0.5), connection.write(H, dropped, c))
    connection.eval()
    torch.testing.assert_close(connection.write(H, y, c, bias, 0.5), connection.write(H, y + bias, c))


def test_expand_and_contract():
    h = streams_like(config("residual"))[..., 0, :]
    for kind, width in (("residual", 1), ("dfc", 1), ("shc", 2), ("mhc", 2)):
        conn = config(kind, n=2)
        H = expand(h, width)
        assert H.shape == (3, 1, width, 6) and H.is_contiguous()
        torch.testing.assert_close(build_contract(conn, 6, norm_eps=0.0)(H), width * h)
    mean = config("mhc", n=2, contract="mean")
    torch.testing.assert_close(build_contract(mean, 6, norm_eps=0.0)(expand(h, 2)), h)
    head = config("shc", n=2, contract="head")
    torch.testing.assert_close(build_contract(head, 6, norm_eps=0.0).double()(expand(h, 2)), h * 2 / 3)
