"""What must hold of whole networks: equality with pre-norm, causality, duality, unfolding, gains,
symmetry."""

import pytest
import torch

from hcmegatron.connections import kinds
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.connection_matrix import connection_matrix
from tests.connections.small_network import KINDS, LINEAR, WIDE, Network, config, randomise, some, tokens

AT_PRENORM = [kind for kind in KINDS if kinds.KINDS[kind].starts == "at"]
MANIFOLD = [kind for kind in KINDS if kinds.KINDS[kind].doubly_stochastic(config(kind))]
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def loss_and_gradients(network, h):
    out = network(h)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in network.sublayers.named_parameters()}


@pytest.mark.parametrize(
    "conn",
    [
        *(config(kind, n=1) for kind in (*AT_PRENORM, "mhc")),
        *(config(kind, n=n, contract="mean") for kind in AT_PRENORM for n in (2, 3, 4, 12)),
        config("dhc", n=4),  # the sum: the final norm has epsilon 0
        config("mhc", n=4, use_pre=False, use_post=False, use_res=False),
    ],
    ids=lambda c: f"{c.kind}-{c.n}-{c.contract}",
)
def test_is_the_prenorm_network_at_initialisation(conn):
    """Outputs and gradients of the shared weights. mHC with n = 1, where Sinkhorn gives 1, or disabled."""
    network, prenorm = Network(conn), Network(config("residual"))
    h = tokens()
    out, grads = loss_and_gradients(network, h)
    expected, expected_grads = loss_and_gradients(prenorm, h)
    torch.testing.assert_close(out, expected, **EXACT)
    norm = torch.stack([g.norm() for g in expected_grads.values()]).norm()
    for name, g in expected_grads.items():
        assert (grads[name] - g).norm() <= 1e-11 * norm, name


@pytest.mark.parametrize("kind", MANIFOLD)
def test_starts_close_to_prenorm_with_unequal_streams(kind):
    h = tokens()
    streams, coefficients = [], []
    network = Network(config(kind, contract="mean"))
    out = network(h, streams=streams, coefficients=coefficients)
    expected = Network(config("residual"))(h)
    assert (out - expected).norm() < 0.05 * expected.norm()
    for pre, post, res, *_ in coefficients:
        assert (post - 1).abs().max() < 0.11 and (res - torch.eye(4)).abs().max() < 0.03
        assert (pre - 0.2).abs().max() < 0.2
    assert (streams[0][..., 0, :] - streams[0][..., 1, :]).norm() > 1e-2 * h.norm()


def test_initial_values_depend_on_the_index_alone():
    for kind in KINDS:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        a = Network(config(kind), seed=0).connections.state_dict()
        torch.manual_seed(7)
        b = Network(config(kind), seed=1).connections.state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
        torch.manual_seed(5)
        build_connection(config(kind), 8, 3, norm_eps=0.0)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_the_last_token_changes_no_earlier_output(kind):
    network = randomise(Network(some(kind, 3)))
    h = tokens()
    changed = h.clone()
    changed[-1] += 1
    a, b = network(h), network(changed)
    assert torch.equal(a[:-1], b[:-1]) and not torch.equal(a[-1], b[-1])


def test_tokens_do_not_share_coefficients():
    network = randomise(Network(config("dhc", n=2)))
    h = tokens(s=1, b=4)
    torch.testing.assert_close(network(h)[:, 2:3], network(h[:, 2:3]), **EXACT)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_fraction_is_one_stream(dynamic):
    frac = randomise(Network(config("dfc" if dynamic else "sfc", n=1)))
    hyper = Network(config("dhc" if dynamic else "shc", n=1))
    for f, h in zip(frac.connections, hyper.connections, strict=True):
        with torch.no_grad():
            h.A_m.copy_(f.Y[0])
            h.A_r.copy_(f.A)
            h.B.copy_(f.B)
            if dynamic:
                h.W_m.copy_(f.W_alpha[:, 0])
                h.W_r.copy_(f.W_alpha[:, 1:])
                for name in ("W_b", "s_a", "s_b", "norm_weight"):
                    getattr(h, name).copy_(getattr(f, "W_beta" if name == "W_b" else name))
    h = tokens()
    # The same shared weights: randomise() has changed the fractions' network's.
    hyper.sublayers.load_state_dict(frac.sublayers.state_dict())
    torch.testing.assert_close(hyper(h), frac(h), **EXACT)


def hyper_network(matrices):
    """SHC with n = 2 from matrices [[0, B], [A_m, A_r]], one per sub-layer."""
    network = Network(config("shc", n=2), sublayers=len(matrices))
    for connection, rows in zip(network.connections, matrices, strict=True):
        M = torch.tensor(rows, dtype=torch.float64)
        with torch.no_grad():
            connection.B.copy_(M[0, 1:])
            connection.A_m.copy_(M[1:, 0])
            connection.A_r.copy_(M[1:, 1:])
    return network


ODD = [[0, 1, 0], [1, 1, 1], [1, 1, 1]]
EVEN = [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
SEQUENTIAL = [[0, 1, 1], [1, 1, 0], [0, 0, 1]]


def test_duality_pairs_read_the_same_input():
    network = hyper_network([ODD, EVEN, ODD, EVEN])
    inputs = []
    h = tokens()
    network(h, inputs=inputs)
    s = 2 * h  # every pair: s' = 2 s + sum T
    for (x1, y1), (x2, y2) in (inputs[:2], inputs[2:]):
        torch.testing.assert_close(x1, x2, **EXACT)
        torch.testing.assert_close(x1, s, **EXACT)
        s = 2 * s + y1 + y2


def test_duality_parallel_block():
    first, last = [[0, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    network = hyper_network([first, last, ODD, last])
    inputs = []
    h = tokens()
    network(h, inputs=inputs)
    s = h
    for (x1, y1), (x2, y2) in (inputs[:2], inputs[2:]):
        torch.testing.assert_close(x1, s, **EXACT)
        torch.testing.assert_close(x2, s, **EXACT)
        s = s + y1 + y2


def test_duality_sequential():
    network, prenorm = hyper_network([SEQUENTIAL] * 4), Network(config("residual"))
    torch.testing.assert_close(network(tokens()), prenorm(tokens()), **EXACT)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("contract", ["sum", "mean"])
def test_connection_matrix_reproduces_every_input(kind, contract):
    network = randomise(Network(some(kind, 3, contract=contract)))
    inputs, coefficients, streams = [], [], []
    h = tokens()
    network(h, inputs, coefficients, streams)
    C0 = connection_matrix(coefficients, mean=contract == "mean").expand(*h.shape[:2], 6, 6)
    T = torch.stack([h, *(y for _, y in inputs)], -2)
    for k, (x, _) in enumerate(inputs, start=1):
        torch.testing.assert_close(torch.einsum("sbj,sbjc->sbc", C0[..., k, :k], T[..., :k, :]), x, **EXACT)
    out = torch.einsum("sbj,sbjc->sbc", C0[..., 5, :5], T)
    torch.testing.assert_close(out, network.contract(streams[-1]), **EXACT)
    assert torch.equal(C0, C0.tril(-1))


def test_connection_matrix_of_prenorm_is_all_ones():
    coefficients = []
    Network(config("shc", n=1))(tokens(), coefficients=coefficients)
    assert torch.equal(connection_matrix(coefficients), torch.ones(6, 6, dtype=torch.float64).tril(-1))


def test_gains_of_depth():
    """Row sums of products of mHC's matrices stay 1 and their column gain small; HC's grow without bound."""
    h = tokens(s=8, b=2)
    gain = {}
    for kind in ("mhc", "dhc"):
        network = randomise(Network(config(kind, n=4), sublayers=48), scale=0.5)
        coefficients = []
        network(h, coefficients=coefficients)
        product = torch.eye(4, dtype=torch.float64)
        for _, _, res, *_ in coefficients:
            product = res @ product
        if kind == "mhc":
            torch.testing.assert_close(product.sum(-1), torch.ones_like(product.sum(-1)), **EXACT)
        gain[kind] = product.abs().sum(-2).max()
    assert gain["mhc"] < 2 and gain["dhc"] > 100


@pytest.mark.parametrize("kind", WIDE)
def test_streams_differ_after_a_few_steps(kind):
    network = Network(config(kind, n=4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)
    target = tokens(seed=9)
    for _ in range(20):  # ihc and gr begin with streams that are all equal, and with flat gates
        optimizer.zero_grad()
        (network(tokens()) - target).square().mean().backward()
        optimizer.step()
    streams = []
    network(tokens(), streams=streams)
    H = streams[-1]
    for i in range(4):
        for j in range(i):
            assert (H[..., i, :] - H[..., j, :]).norm() > 1e-3 * H.norm()


def test_gradients_of_mhc_parameters_are_not_symmetric_at_initialisation():
    network = Network(config("mhc", n=4))
    loss_and_gradients(network, tokens())
    for connection in network.connections[1:]:
        for name, p in connection.named_parameters():
            if not name.startswith("alpha"):  # phi is 0, so alpha's gradient is too
                assert p.grad.norm() > 1e-8, name
        columns = connection.phi.grad.split((4, 4, 16), -1)[1]
        assert (columns - columns.mean(-1, keepdim=True)).norm() > 1e-3 * columns.norm()
