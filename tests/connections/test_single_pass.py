"""Single-pass mHC: a network by the formulas, who has which gradient, and what stands alone."""

import pytest
import torch
from torch.nn import functional as F

import hcmegatron
from hcmegatron.connections import accounting
from tests.connections.small_network import Network, config, randomise, tokens

KINDS = ["mhc", "mhc_lite", "krom"]


def by_formulas(network, h):
    """The network token by token of read, carry, write: x_k with the pre of sub-layer k - 1."""
    n = network.conn.n
    H = torch.stack([h] * n, -2)
    pre = torch.zeros(*h.shape[:-1], n, dtype=h.dtype)
    pre[..., 0] = 1
    for T, connection in zip(network.sublayers, network.connections, strict=True):
        x = sum(pre[..., i, None] * H[..., i, :] for i in range(n))
        own, post, res = connection.coefficients(H)
        y, bias = T(x)
        H = torch.stack(
            [
                sum(res[..., o, i, None] * H[..., i, :] for i in range(n)) + post[..., o, None] * (y + bias)
                for o in range(n)
            ],
            -2,
        )
        pre = own
    h = sum(pre[..., i, None] * H[..., i, :] for i in range(n))
    return F.rms_norm(h, h.shape[-1:], eps=network.eps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_and_every_gradient_by_the_formulas(kind):
    network = randomise(Network(config(kind, n=4, single_pass=True), sublayers=3))
    h = tokens()
    weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
    found = []
    for out in (network(h), by_formulas(network, h)):
        gradients = torch.autograd.grad((out * weight).sum(), list(network.parameters()))
        found.append([out, *gradients])
    for name, ours, exact in zip(
        ["output", *(name for name, _ in network.named_parameters())], *found, strict=True
    ):
        torch.testing.assert_close(
            ours, exact, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert exact.abs().max() > 0, name


def test_pre_of_a_sub_layer_is_for_the_next_one():
    network = randomise(Network(config("mhc", n=2, single_pass=True), sublayers=2))
    first = network.connections[0]
    H = torch.randn(3, 1, 2, 12, dtype=torch.float64)
    mix = torch.rand(3, 1, 2, dtype=torch.float64).requires_grad_()
    x, (pre, *_) = first.read(H, None, mix)
    torch.testing.assert_close(x, (mix.unsqueeze(-1) * H).sum(-2))
    assert torch.autograd.grad(x.sum(), first.b_pre, retain_graph=True, allow_unused=True)[0].abs().max() == 0
    torch.testing.assert_close(torch.autograd.grad(x.sum(), mix)[0], H.sum(-1))
    torch.testing.assert_close(first.read(H)[0], H[..., 0, :])
    assert pre.requires_grad


def test_the_last_mix_contracts_without_parameters():
    conn = config("mhc", n=4, single_pass=True, contract="head")
    assert accounting.contract_parameters(conn, 8) == 0 and accounting.contract_flops(conn, 8) == 2 * 4 * 8
    assert accounting.ineffective_fields(conn)["contract"] == "connection.single_pass is true"
    assert "contract" not in accounting.ineffective_fields(config("mhc"))


@pytest.mark.parametrize(("itemsize", "columns"), [(2, 8), (4, 4), (8, 4)])
def test_what_crosses_a_hop(itemsize, columns):
    conn = config("mhc", n=4, single_pass=True)
    assert accounting.message_bytes(conn, 6, itemsize) == itemsize * (24 + columns)
    assert accounting.message_bytes(config("mhc", n=4), 6, itemsize) == itemsize * 24
    fixed = config("mhc", n=4, single_pass=True, use_pre=False)
    assert accounting.message_bytes(fixed, 6, itemsize) == itemsize * 24
    assert accounting.ineffective_fields(fixed)["single_pass"] == "connection.use_pre is false"


def test_one_sub_layer_alone_is_refused():
    connection = hcmegatron.connection("mhc", hidden_size=8, streams=2, single_pass=True)
    with pytest.raises(
        ValueError, match="single_pass=True: a single-pass connection hands its pre to the next"
    ):
        hcmegatron.Connected(torch.nn.Identity(), connection)
