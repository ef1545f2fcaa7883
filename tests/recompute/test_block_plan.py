"""The plan's arithmetic, without torch, and what it says."""

import math

import pytest

from hcmegatron.recompute.block_plan import (
    Terms,
    best_length,
    blocks,
    describe_plan,
    paper_length,
    plan_blocks,
)

C = 1000


def paper_terms(n):
    """nC, C and (n+2)C, the paper's."""
    return Terms(n * C, C, (n + 2) * C)


@pytest.mark.parametrize(
    ("sublayers", "length", "expected"),
    [
        (8, 3, [2, 3, 3]),
        (8, 8, [8]),
        (1, 1, [1]),
        (7, 2, [1, 2, 2, 2]),
        (6, 3, [3, 3]),
    ],
)
def test_blocks_cover_the_chunk_and_the_first_is_the_short_one(sublayers, length, expected):
    assert blocks(sublayers, length) == expected


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("live", [1, 3, 16])
def test_the_best_length_is_the_exact_minimum_near_the_closed_form(n, live):
    for sublayers in range(1, 61):
        terms = paper_terms(n)
        cost = {k: live * n * C * math.ceil(sublayers / k) + (n + 2) * C * k for k in range(1, sublayers + 1)}
        best = best_length(sublayers, terms, live)
        assert cost[best] == min(cost.values())
        closed = min(sublayers, max(1.0, math.sqrt(live) * paper_length(sublayers, n)))
        assert cost[best] <= cost[max(1, round(closed))]
        assert closed / 1.5 - 1 <= best <= closed * 1.5 + 1


def test_the_paper_s_figures():
    assert best_length(60, paper_terms(4)) == 6
    assert paper_length(60, 4) == pytest.approx(6.32, abs=0.01)
    chosen = plan_blocks(60, "paper", paper_terms(4), live=1)
    assert chosen.kept == (4 * 10 + 60) * C
    assert chosen.peak == chosen.kept + (6 * 6 - 4) * C
    assert chosen.without == 60 * 7 * C


def test_live_micro_batches_make_longer_blocks_and_both_are_printed():
    terms = paper_terms(4)
    lengths = {live: plan_blocks(60, "live", terms, live).length for live in (1, 4, 16)}
    assert lengths[1] == 6 and 11 <= lengths[4] <= 13 and 22 <= lengths[16] <= 30
    paper, live = plan_blocks(60, "paper", terms, 4), plan_blocks(60, "live", terms, 4)
    assert paper.length == 6 and live.peak < paper.peak
    text = "\n".join(describe_plan(live, "live", 4))
    assert "6.32" in text and f"blocks of {live.length}" in text and "blocks of 6" in text


@pytest.mark.parametrize("length", ["0", "9"])
def test_a_length_outside_the_stage_is_refused(length):
    with pytest.raises(ValueError, match=rf"block_length = {length}.*8 sub-layers.*use 1 to 8"):
        plan_blocks(8, length, paper_terms(4), 1)
