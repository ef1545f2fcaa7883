"""The pure functions of the diagnostics at cases whose answers are known, to the digit."""

import math

import pytest
import torch

from hcmegatron.config.schema import Connection
from hcmegatron.connections.connection_matrix import connection_matrix
from hcmegatron.connections.kinds import KINDS
from hcmegatron.connections.sinkhorn import sinkhorn
from hcmegatron.diagnostics import gains
from hcmegatron.diagnostics.columns import Columns
from hcmegatron.diagnostics.sample import Sample, Slice, sample, tokens_in
from hcmegatron.diagnostics.similarity import cosine, off_diagonal_mean, percentiles, stream_similarity
from hcmegatron.diagnostics.unfolded import unfolded


def fp64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_gains_of_a_matrix_by_hand():
    forward, backward = gains.amax_gains(fp64([[1.0, -3.0], [2.0, 0.5]]))
    # rows sum to -2 and 2.5, columns to 3 and -2.5
    assert (forward.item(), backward.item()) == (2.5, 3.0)


def test_a_planted_gain_of_3000_is_read_as_3000():
    res = torch.eye(4, dtype=torch.float64).repeat(6, 3, 1, 1)
    res[2, :, 1, 1] = 3000.0
    forward, backward = gains.amax_gains(gains.composites(res))
    assert forward[:3].eq(3000).all() and backward[:3].eq(3000).all()
    assert forward[3:].eq(1).all() and backward[3:].eq(1).all()


def test_a_composite_is_the_product_in_the_order_of_depth():
    a, b = fp64([[1.0, 1.0], [0.0, 1.0]]), fp64([[1.0, 0.0], [1.0, 1.0]])
    first, last = gains.composites(torch.stack([a, b]).unsqueeze(1))[:, 0]
    assert first.tolist() == [[1.0, 1.0], [1.0, 2.0]] and last.tolist() == b.tolist()  # b a, and b alone


def test_gains_are_each_tokens_own_before_they_are_averaged():
    """Two tokens with opposite maps have a mean of zero, and a gain of 1."""
    maps = torch.stack([torch.eye(2), -torch.eye(2)]).double()
    assert gains.amax_gains(maps)[0].mean() == 1 and gains.amax_gains(maps.mean(0))[0] == 0


def test_rows_of_mhcs_maps_sum_to_1_and_the_error_is_the_columns():
    logits = torch.randn(50, 4, 4, dtype=torch.float64) * 3
    few = sinkhorn(logits, iterations=3)
    assert (few.sum(-1) - 1).abs().max() < 1e-15
    columns = (few.sum(-2) - 1).abs().amax(-1)
    assert torch.allclose(gains.doubly_stochastic_error(few), columns, rtol=1e-12) and columns.max() > 1e-3
    assert gains.doubly_stochastic_error(torch.full((4, 4), 0.25)) == 0


def test_composites_of_mhcs_maps_keep_a_forward_gain_of_1():
    res = sinkhorn(torch.randn(40, 5, 4, 4, dtype=torch.float64), iterations=20)
    assert (gains.amax_gains(gains.composites(res))[0] - 1).abs().max() < 1e-13


def test_entropy_of_rows():
    assert gains.row_entropy(torch.eye(3)) == 0
    assert gains.row_entropy(torch.full((4, 4), 0.25, dtype=torch.float64)).item() == pytest.approx(
        math.log(4), abs=1e-15
    )
    assert gains.row_entropy(fp64([[0.5, -0.5], [0.0, 0.0]])).item() == pytest.approx(
        math.log(2) / 2, abs=1e-15
    )


def test_the_range_of_logits_is_theirs_whatever_sinkhorn_added():
    logits = torch.randn(9, 4, 4, dtype=torch.float64)
    centred = logits - logits.mean(-1, keepdim=True)
    centred = (centred - centred.mean(-2, keepdim=True)).flatten(1)
    expected = centred.amax(-1) - centred.amin(-1)
    for iterations in (1, 20):
        assert torch.allclose(gains.logit_range(sinkhorn(logits, iterations)), expected, rtol=1e-12)


def test_similarity_is_1_for_sub_layers_whose_output_is_zero():
    x = torch.randn(100, 24, dtype=torch.float64) * 1e-3
    assert cosine(x, x).eq(1).all()
    assert cosine(x, -x).eq(-1).all()
    assert percentiles(cosine(x, x).unsqueeze(0)).tolist() == [[1.0, 1.0, 1.0]]
    assert cosine(x, torch.zeros_like(x)).eq(0).all()


def test_similarity_of_streams():
    H = fp64([[[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]]])
    assert stream_similarity(H)[0].tolist() == [[1.0, 0.96, -1.0], [0.96, 1.0, -0.96], [-1.0, -0.96, 1.0]]
    assert off_diagonal_mean(stream_similarity(H)).item() == pytest.approx(-1 / 3, abs=1e-15)


def test_percentiles_are_between_values():
    assert percentiles(torch.arange(101.0).double().repeat(2, 1)).tolist() == [[5.0, 50.0, 95.0]] * 2
    assert percentiles(fp64([[0.0, 1.0]])).tolist() == [[0.05, 0.5, 0.95]]


def test_the_residuals_unfolded_matrix_is_the_strict_lower_triangle_of_ones():
    one = torch.ones(5, 7, 1, dtype=torch.float64)
    C0 = unfolded(one.unsqueeze(-1), one, one.unsqueeze(-1), torch.ones(1, 1)).sum(0)
    assert C0.tolist() == torch.ones(7, 7).tril(-1).tolist()


@pytest.mark.parametrize("mean", [False, True])
def test_unfolded_streams_add_up_to_the_connection_matrix(mean):
    S, T, n = 4, 6, 3
    pre, post, res = (torch.randn(S, T, *shape, dtype=torch.float64) for shape in ((n,), (n,), (n, n)))
    last = torch.full((1, n), 1 / n if mean else 1.0, dtype=torch.float64)
    by_stream = unfolded(pre.unsqueeze(2), post, res, last)
    whole = connection_matrix(list(zip(pre, post, res, strict=True)), mean=mean).mean(0)
    assert (by_stream.sum(0) - whole).abs().max() < 1e-13
    only = unfolded(pre.unsqueeze(2) * torch.eye(n)[1], post, res, last)  # nobody but stream 1 is read
    assert (only[1, :-1] - by_stream[1, :-1]).abs().max() < 1e-13 and only[0, :-1].eq(0).all()


def test_fractions_that_are_not_mixed_unfold_to_the_pre_norm_network():
    S, T, m = 3, 2, 4
    eye = torch.eye(m, dtype=torch.float64).expand(S, T, m, m)
    C0 = unfolded(eye, torch.ones(S, T, m, dtype=torch.float64), eye, torch.full((1, m), 1 / m)).sum(0)
    assert C0.tolist() == torch.ones(S + 2, S + 2).tril(-1).tolist()


@pytest.mark.parametrize(
    ("kind", "n", "m"), [("residual", 1, 1), ("shc", 4, 1), ("mhc", 4, 1), ("sfc", 4, 4), ("dfc", 4, 4)]
)
def test_columns_of_every_kind_of_shape(kind, n, m):
    assert Columns.of(Connection(kind=kind, n=4)) == Columns(n, m)


def test_columns_are_split_as_they_were_joined():
    columns = Columns(3, 3)
    values = {name: torch.randn(2, *shape) for name, shape in columns.shapes.items() if name != "saturated"}
    joined = columns.joined(2, values)
    assert joined.shape == (2, columns.width) == (2, 9 + 3 + 9 + 3 + 9 + 1 + 1)
    found = columns.split(joined)
    assert found.pop("saturated").eq(0).all()
    assert all(torch.equal(found[name], value) for name, value in values.items())


def test_coefficients_that_are_missing_are_the_residual_connections():
    index = torch.tensor([0, 1])
    found = Columns(1, 1).coefficients((), index, index)
    assert all(value.flatten(1).tolist() == [[1.0], [1.0]] for value in found.values()) and len(found) == 3
    pre, post = torch.rand(2, 2, 3), torch.rand(3)
    found = Columns(3, 1).coefficients((pre, post), index, index)
    assert torch.equal(found["pre"][:, 0], pre[index, index].double())
    assert torch.equal(found["post"], post.double().expand(2, 3))
    assert torch.equal(found["res"], torch.eye(3).double().expand(2, 3, 3))


def test_activations_are_what_the_saturating_functions_gave():
    own = torch.nn.Module()
    own.A_m, own.A_r, own.B = torch.randn(3), torch.randn(3, 3), torch.randn(3)
    own.s_a, own.s_b = torch.tensor([0.5]), torch.tensor([0.0])
    p = torch.rand(2, 3)
    found = KINDS["dhc"].activations(
        Connection(kind="dhc"), own, own.A_m + 0.5 * p, own.B.expand(2, 3), own.A_r.mT.expand(2, 3, 3)
    )
    assert torch.allclose(found["pre"], p, atol=1e-6)
    assert found["post"].eq(0).all() and found["res"].eq(0).all()
    assert KINDS["dhc"].activations(Connection(kind="dhc", tanh=False), own, p, p, p) == {}
    logits = torch.tensor([-4.0, 0.0, 3.0])
    found = KINDS["mhc"].activations(
        Connection(pre_eps=0.25), None, logits.sigmoid() + 0.25, 2 * logits.sigmoid(), None
    )
    assert torch.allclose(found["pre"], (logits / 2).tanh()) and torch.allclose(found["post"], found["pre"])
    assert KINDS["mhc"].activations(Connection(use_pre=False, use_post=False), None, None, None, None) == {}
    assert KINDS["residual"].activations(Connection(kind="residual"), None, None, None, None) == {}


@pytest.mark.parametrize(
    ("wanted", "length", "there", "expected"),
    [
        (512, 256, 9, Sample(2, range(0, 256, 1))),
        (512, 4096, 9, Sample(1, range(0, 4096, 8))),
        (512, 256, 1, Sample(1, range(0, 256, 1))),  # fewer than asked for
        (300, 256, 9, Sample(2, range(0, 256, 2))),
        (1, 256, 9, Sample(1, range(0, 256, 256))),
        (7, 3, 9, Sample(3, range(0, 3, 2))),
    ],
)
def test_which_tokens_are_observed(wanted, length, there, expected):
    assert sample(wanted, length, there) == expected


def test_every_token_is_seen_on_one_rank_under_sequence_and_data_parallelism():
    chosen = sample(20, 8, 9)  # three sequences, every second position
    assert chosen.tokens == 12
    seen = [
        number
        for first in (0, 2)  # micro-batches of two sequences on two data-parallel ranks
        for start in (0, 4)
        for _, _, number in tokens_in(chosen, Slice(first, 2, start, 4))
    ]
    assert sorted(seen) == list(range(12))
    assert tokens_in(chosen, Slice(2, 2, 4, 4)) == [(0, 0, 10), (2, 0, 11)]
