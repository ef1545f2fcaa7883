"""Connections for networks of plain torch: by keyword arguments, around any sub-layer."""

import pytest
import torch
from torch import nn

import hcmegatron as hc
from hcmegatron.connections import kinds
from tests.connections.small_network import Network, config, randomise, tokens

C = 12


class Output(nn.Module):
    """A sub-layer of the small network as one of plain torch: its bias added."""

    def __init__(self, sub_layer):
        super().__init__()
        self.sub_layer = sub_layer

    def forward(self, x):
        y, bias = self.sub_layer(x)
        return y + bias


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_network_of_connected_sub_layers_is_the_network(kind):
    """Against reads and writes by hand, with randomised parameters and gradients."""
    conn = config(kind, n=2)
    network = randomise(Network(conn, C))
    count = {} if kind == "residual" else {"fractions" if kind in ("sfc", "dfc") else "streams": 2}
    like = {"hidden_size": C, "dtype": torch.float64}
    layers = nn.ModuleList(
        hc.Connected(Output(T), hc.connection(kind, index=k, **count, **like))
        for k, T in enumerate(network.sublayers)
    )
    for layer, connection in zip(layers, network.connections, strict=True):
        layer.connection.load_state_dict(connection.state_dict())
    h = tokens(C=C).requires_grad_()
    H = hc.expand(h, layers[0].connection.streams)
    for layer in layers:
        H = layer(H)
    out = nn.functional.rms_norm(hc.contract(H), [C], eps=0.0)
    expected = network(h)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    own = [p for layer in layers for p in layer.parameters()]
    pairs = zip(layers, network.connections, strict=True)
    theirs = [p for layer, c in pairs for p in [*layer.sub_layer.parameters(), *c.parameters()]]
    gradients = torch.autograd.grad(out.square().sum(), own, retain_graph=True)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.square().sum(), theirs), rtol=0, atol=0
    )


def test_what_a_sub_layer_is_given_and_gives():
    class Masked(nn.Module):
        def forward(self, x, mask, scale=1.0):
            return x * mask * scale

    layer = hc.Connected(Masked(), hc.connection("residual", hidden_size=C))
    H = hc.expand(tokens(C=C), 1)
    torch.testing.assert_close(layer(H, torch.tensor(2.0), scale=3.0), 7 * H)
    around = hc.connection("shc", hidden_size=C, streams=2)
    with pytest.raises(ValueError, match=r"streams of shape \[5, 2, 12\]: must be \[s, b, 2, 12\]"):
        hc.Connected(nn.Identity(), around)(tokens(C=C))
    with pytest.raises(ValueError, match=r"streams of shape \[5, 2, 3, 12\]: must be \[s, b, 2, 12\]"):
        hc.Connected(nn.Identity(), around)(hc.expand(tokens(C=C), 3))
    H = hc.expand(tokens(C=C), 2).float()
    with pytest.raises(TypeError, match=r"Linear returned a tensor of shape \[5, 2, 1\]: .* \[5, 2, 12\]"):
        hc.Connected(nn.Linear(C, 1), around)(H)
    attention = nn.MultiheadAttention(C, 2)
    with pytest.raises(
        TypeError, match="MultiheadAttention returned a tuple: a sub-layer returns one tensor"
    ):
        x = H[..., 0, :]
        hc.Connected(attention, around)(H, x, x)


def test_shown_as_it_was_built():
    shown = {
        "mhc": "Manifold('mhc', hidden_size=12, index=3, streams=4, sinkhorn_iterations=5, kernels='torch: asked for')",
        "dfc": "DynamicFrac('dfc', hidden_size=12, index=3, fractions=4, kernels='torch: asked for')",
        "residual": "Residual('residual', hidden_size=12, index=3)",
    }
    for kind, words in shown.items():
        settings = {"sinkhorn_iterations": 5} if kind == "mhc" else {}
        made = hc.connection(kind, hidden_size=C, index=3, kernels="torch", **settings)
        assert repr(made) == words
    assert hc.connection("dfc", hidden_size=C).streams == 1 and hc.connection(hidden_size=C).streams == 4


def test_calling_a_connection_says_what_to_do():
    with pytest.raises(TypeError, match=r"not called itself: Connected\(sub_layer, connection\)\(H\)"):
        hc.connection("mhc", hidden_size=C)(torch.ones(1, 1, 4, C))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"kind": "mch"},
            "connection.kind='mch': choose one of residual, shc, dhc, sfc, dfc, mhc, mhc_lite, krom, ihc, gr",
        ),
        ({"hidden_size": 0}, "hidden_size=0: must be a whole number of at least 1"),
        ({"index": -1}, "index=-1: must be a whole number, 0 for the network's first sub-layer"),
        ({"stream": 2}, "stream=2: no setting of mhc; did you mean streams?"),
        ({"streams": 0}, "streams=0 is out of range; it must be at least 1"),
        ({"streams": True}, "n=True: must be a whole number"),
        ({"streams": 2, "n": 3}, "streams=2 and n=3 are the same setting; give one of them"),
        ({"use_res": 0}, "use_res=0: must be True or False"),
        ({"alpha_init": "1"}, "alpha_init='1': must be a number"),
        ({"sinkhorn_eps": "no"}, "sinkhorn_eps='no': choose one of none, additive, clamp"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations=0 is out of range; it must be at least 1"),
        ({"contract": "mean"}, "contract='mean': is not the connection's own; use hcmegatron.contract or "
         "hcmegatron.contraction"),
        ({"kind": "dhc", "lr_multiplier": 2.0}, "lr_multiplier=2.0: is not the connection's own; give your optimizer a "
         "parameter group for the connections"),
        ({"kind": "sfc", "streams": 2}, "streams=2: no setting of sfc, which has fractions"),
        ({"kind": "dfc", "fractions": 5}, "hidden_size=12 is not divisible by fractions=5 fractions (kind='dfc'); use "
         "10 or 15 for hidden_size, or a divisor of 12 for fractions"),
        ({"kind": "residual", "streams": 2}, "streams=2: residual has no settings"),
        ({"kernels": "cuda"}, "kernels='cuda': choose one of auto, torch, triton, native"),
    ],
)  # fmt: skip
def test_mistakes(words, said):
    with pytest.raises(ValueError) as error:
        hc.connection(**{"hidden_size": C} | words)
    assert str(error.value) == said


def test_contractions():
    H = torch.stack([torch.full((1, 1, C), value) for value in (1.0, 2.0, 6.0)], -2)
    sums = {"sum": 9.0, "mean": 3.0, "head": 9 / 4 + 9e-3}
    for how, value in sums.items():
        module = hc.contraction(how, hidden_size=C, streams=3)
        if how == "head":
            module.pre_eps = 1e-3
        torch.testing.assert_close(module(H), torch.full((1, 1, C), value))
        if how != "head":
            torch.testing.assert_close(hc.contract(H, how), module(H), rtol=0, atol=0)
    with pytest.raises(ValueError, match="how='head': choose sum or mean; a learned one is contraction"):
        hc.contract(H, "head")
    with pytest.raises(ValueError, match="how='max': choose one of sum, mean, head"):
        hc.contraction("max", hidden_size=C, streams=3)


def test_only_streams_that_differ_are_told_apart():
    """Two sub-layers read different streams at the beginning, which is what index is for."""
    made = [hc.connection("shc", hidden_size=C, streams=3, index=k) for k in (0, 4)]
    assert [connection.A_m.tolist() for connection in made] == [[1, 0, 0], [0, 1, 0]]
