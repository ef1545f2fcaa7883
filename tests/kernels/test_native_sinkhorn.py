"""Sinkhorn compiled has torch's bits: by itself, and through `auto` in whole steps of training."""

import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.expand_contract import expand
from hcmegatron.kernels import torch_coefficients, torch_sinkhorn
from hcmegatron.kernels.native import sinkhorn
from hcmegatron.kernels.native.library import EPS, function
from hcmegatron.kernels.native.primitives import SinkhornCompiled
from hcmegatron.kernels.options import ReadOptions

pytestmark = pytest.mark.skipif(
    sinkhorn.differs(4) is not None, reason=f"not compiled: {sinkhorn.differs(4)}"
)
TOKENS = (0, 1, 15, 16, 17, 63, 512, 1000)


@pytest.fixture
def calls(monkeypatch):
    """The compiled functions that were called."""
    seen = []
    monkeypatch.setattr(sinkhorn, "function", lambda name, n: seen.append(name) or function(name, n))
    return seen


def both(L, dM, iterations, eps):
    for module in (sinkhorn, torch_sinkhorn):
        yield module.forward(L, iterations, eps), module.backward(L, dM, iterations, eps)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_bits(n, eps, calls):
    torch.manual_seed(n)
    for T in TOKENS:
        for iterations in (1, 2, 20):
            L, dM = 3 * torch.randn(n, n, T), torch.randn(n, n, T)
            for ours, theirs in zip(*both(L, dM, iterations, eps), strict=True):
                assert torch.equal(ours, theirs), (T, iterations)
    assert len(calls) == 2 * 3 * (len(TOKENS) - 1)


@pytest.mark.parametrize("orientation", ["paper", "deepseek_v4", "column_last"])
@pytest.mark.parametrize("n", [2, 4])
def test_bits_of_matrices_that_are_turned(n, orientation, calls):
    options = ReadOptions(n, orientation=orientation, iterations=4)
    torch.manual_seed(0)
    t, scale, bias = (
        torch.randn(options.columns, 100),
        torch.rand(options.columns),
        torch.randn(options.columns),
    )
    gradients = torch.randn(n, 100), torch.randn(n, 100), torch.randn(n, n, 100)
    given = (t, scale, bias)
    for each, *arguments in (
        (torch_coefficients.forward, options),
        (torch_coefficients.backward, *gradients, None, options),
    ):
        for ours, theirs in zip(each(*given, *arguments, sinkhorn), each(*given, *arguments), strict=True):
            assert torch.equal(ours, theirs)
    assert calls == ["sinkhorn_forward", "sinkhorn_backward"]


@pytest.mark.parametrize("what", ["span", "nan", "fp64", "meta"])
def test_what_the_linear_form_is_not_for_is_torchs(what, calls):
    L, dM = torch.randn(3, 3, 20), torch.randn(3, 3, 20)
    if what == "span":
        L[0, 0, 3] = 40
    elif what == "nan":
        L[1, 2, 19] = float("nan")
    else:
        L, dM = (L.double(), dM.double()) if what == "fp64" else (L.to("meta"), dM.to("meta"))
    for ours, theirs in zip(*both(L, dM, 5, "none"), strict=True):
        if what == "meta":
            assert ours.shape == theirs.shape
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert calls == []


def test_gradients_of_others_are_left_alone():
    dM = torch.randn(2, 2, 16)
    before = dM.clone()
    sinkhorn.backward(torch.randn(2, 2, 16), dM, 3, "none")
    assert torch.equal(dM, before)


def train(kernels, dtype, **settings):
    """Losses and parameters of three steps of a small network, and its kernels; also of tokens no multiple of 16."""
    torch.manual_seed(0)
    C, L, conn = 16, 4, Connection(n=4, **settings)
    linears = torch.nn.ModuleList(torch.nn.Linear(C, C) for _ in range(L))
    connections = torch.nn.ModuleList(
        build_connection(conn, C, k, norm_eps=1e-6, kernels=kernels, streams=dtype) for k in range(L)
    )
    optimizer = torch.optim.AdamW([*linears.parameters(), *connections.parameters()], lr=1e-2)
    g, losses = torch.Generator().manual_seed(1), []
    for _ in range(3):
        optimizer.zero_grad()
        for tokens in (64, 37):
            h, target = torch.randn(2, tokens, 2, C, generator=g)
            H = expand(h.to(dtype), conn.n)
            for linear, c in zip(linears, connections, strict=True):
                x, coefficients = c.read(H)
                H = c.write(H, (torch.tanh(x.float()) @ linear.weight).to(dtype), coefficients)
            loss = (H.float().sum(-2) - target).square().mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    words = connections[0].kernels.reason
    return losses, [p.detach().clone() for p in connections.parameters()], words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sinkhorn_eps": "additive"},
        {"res_orientation": "column_last", "sinkhorn_eps": "clamp"},
        {"single_pass": True, "res_orientation": "deepseek_v4"},
        {"sinkhorn_backward": "implicit"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_auto_trains_with_the_bits_of_torch(settings, dtype, calls):
    losses, parameters, words = train("auto", dtype, **settings)
    assert "; Sinkhorn compiled by " in words and "sinkhorn_forward" in calls
    reference, theirs, words = train("torch", dtype, **settings)
    assert words == "torch: asked for"
    assert losses == reference and all(map(torch.equal, parameters, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_trains_to_the_losses_of_torch(dtype):
    losses, _, words = train("native", dtype)
    assert words.startswith(f"native: n=4, {'bf16' if dtype == torch.bfloat16 else 'fp32'}, compiled by ")
    assert losses == pytest.approx(train("torch", dtype)[0], rel=1e-5 if dtype == torch.float32 else 1e-2)


def test_it_is_compared_on_the_cpu_wherever_a_model_is_built():
    sinkhorn.differs.cache_clear()
    with torch.device("meta"):
        assert sinkhorn.differs(2) is None


def test_only_sinkhorn_is_compiled():
    own = {name for name in vars(SinkhornCompiled) if not name.startswith("__")}
    assert own == {"sinkhorn"}
