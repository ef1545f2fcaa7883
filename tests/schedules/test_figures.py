"""Figures published or derived elsewhere, reproduced exactly. Costs: F=1, I=W=1, B=2, FB=3 unless said."""

import pytest

from schedules.actions import Kind
from schedules.costs import Costs, Link, StageCosts
from schedules.generators import generate
from schedules.memory import peaks
from schedules.simulate import simulate
from schedules.validate import live_chunks

UNIT = StageCosts(F=1, I=1, W=1, B=2, FB=3)


def makespan(name, ranks, microbatches, hop=0.0, stage=UNIT, **how):
    return simulate(generate(name, ranks, microbatches), Costs((stage,), Link(hop), **how)).makespan


def test_dualpipe_on_8_ranks_takes_66_and_1f1b_81():
    for name, expected, bubble in (("dualpipe", 66, 6), ("1f1b", 81, 21)):
        simulation = simulate(generate(name, 8, 20), Costs((UNIT,), early=False))
        assert simulation.makespan == expected
        assert simulation.bubble == (bubble,) * 8


@pytest.mark.parametrize(("hop", "expected"), [(0.25, 72.5), (0.5, 79.5)])
def test_exposed_hops_of_dualpipe_in_lockstep(hop, expected):
    assert makespan("dualpipe", 8, 20, hop, early=False) == expected


@pytest.mark.parametrize(
    ("microbatches", "how", "free", "with_hop"),
    [
        (16, {"early": False}, 102, 109.5),
        (32, {"early": False}, 198, 211.5),
        (16, {"lead": 1}, 99, 102.5),
        (32, {"lead": 1}, 195, 198.5),
    ],
)
def test_hops_of_dualpipev_on_4_ranks(microbatches, how, free, with_hop):
    assert makespan("dualpipev", 4, microbatches, **how) == free
    assert makespan("dualpipev", 4, microbatches, 0.25, **how) == with_hop


@pytest.mark.parametrize(("microbatches", "ratio"), [(16, 1.035), (32, 1.018)])
def test_a_lead_of_a_quarter_hides_the_hops_as_well_as_a_whole_one(microbatches, ratio):
    """A hop of 0.25 F is what a lead of a quarter covers. It takes longer in all, hops or not."""
    for lead in (0.25, 1):
        free = makespan("dualpipev", 4, microbatches, lead=lead)
        assert round(makespan("dualpipev", 4, microbatches, 0.25, lead=lead) / free, 3) == ratio
    assert makespan("dualpipev", 4, microbatches, lead=0.25) > makespan("dualpipev", 4, microbatches, lead=1)


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
@pytest.mark.parametrize("ranks", [2, 4, 6, 8, 16])
def test_counts_per_rank_of_dualpipe(name, ranks):
    """P: ranks of DualPipe, stages of DualPipeV. I = W = P-h-1, at most h+1 W pending, P+1 live chunks."""
    schedule = generate(name, ranks, 4 * ranks)
    P = schedule.placement.model_stages
    for rank, actions in enumerate(schedule.actions):
        h = min(rank, ranks - 1 - rank) if name == "dualpipe" else rank
        kinds = [part.kind for action in actions for part in action.parts]
        assert kinds.count(Kind.I) == kinds.count(Kind.W) == P - h - 1
        pending = [kinds[:i].count(Kind.I) - kinds[:i].count(Kind.W) for i in range(len(kinds) + 1)]
        assert max(pending) == h + 1
        assert max(live_chunks(actions)) == P + 1
    simulated = peaks(simulate(schedule, Costs((UNIT,))))
    assert [peak.chunks for peak in simulated] == [P + 1] * ranks


@pytest.mark.parametrize("ranks", range(1, 9))
def test_dualpipev_is_the_first_half_of_dualpipe(ranks):
    """On P ranks the order of the first P ranks of DualPipe on 2P ranks with 2M micro-batches, both
    of 2P model stages. Direction 1's micro-batches are numbered from M on in DualPipe."""
    for M in (2 * ranks, 2 * ranks + 1, 4 * ranks):
        half, whole = generate("dualpipev", ranks, M), generate("dualpipe", 2 * ranks, 2 * M)
        for mine, theirs in zip(half.actions, whole.actions, strict=False):
            assert [a.kind for a in mine] == [a.kind for a in theirs]
            for a, b in zip(mine, theirs, strict=True):
                for p, q in zip(a.parts, b.parts, strict=True):
                    assert (p.kind, p.stage) == (q.kind, whole.placement.model_stage(q.stage))
                    assert p.microbatch == q.microbatch % M


@pytest.mark.parametrize("ranks", range(1, 17))
@pytest.mark.parametrize("pair", [3, 2.5, 2])
def test_bubbles_by_formula(ranks, pair):
    """With free links and pairs in lockstep. DualPipe's formula supposes F = I = W, which its phases 3 and 7
    interchange, and is that of the middle ranks where FB < F+B, as outer ranks have fewer pairs."""
    stage = StageCosts(F=1, I=1, W=1, FB=pair)
    F, B, W, FB = stage.F, stage.B, stage.W, stage.FB
    formulas = {"gpipe": (ranks - 1) * (F + B), "1f1b": (ranks - 1) * (F + B)}
    formulas["zb_h1"] = (ranks - 1) * (F + B - 2 * W)
    formulas["dualpipev"] = (ranks - 1) * (FB + B - 3 * W)
    if ranks % 2 == 0:
        formulas["dualpipe"] = (ranks / 2 - 1) * (FB + B - 3 * W)
    for name, expected in formulas.items():
        for M in (2 * ranks, 4 * ranks) if ranks <= 4 else (2 * ranks,):
            bubble = simulate(generate(name, ranks, M), Costs((stage,), early=False)).bubble
            middle = ranks // 2 if name == "dualpipe" else ranks - 1
            assert bubble[middle] == max(bubble) == expected, (name, M)
            if pair == 3:
                assert set(bubble) == {expected}, (name, M)


@pytest.mark.parametrize("ranks", range(1, 17))
def test_bubbles_by_formula_for_other_costs(ranks):
    """1F1B's formula holds for any costs, ZB-H1's where W is neither longer than F nor than I."""
    for stage in (
        StageCosts(F=1, I=1.25, W=0.75),
        StageCosts(F=1.5, I=1, W=1),
        StageCosts(F=1, I=1.75, W=0.25),
    ):
        F, B, W = stage.F, stage.B, stage.W
        for name, expected in (("1f1b", F + B), ("zb_h1", F + B - 2 * W)):
            bubble = simulate(generate(name, ranks, 2 * ranks), Costs((stage,))).bubble
            assert set(bubble) == {(ranks - 1) * expected}, name


def test_interleaving_divides_the_bubble_by_the_chunks():
    """(P-1)(F+B)/v with F and B of all of a rank's chunks together (Narayanan et al., section 2.2)."""
    from schedules.generators.interleaved import interleaved

    for chunks in (1, 2, 4):
        simulation = simulate(interleaved(8, 16, chunks), Costs((UNIT.scaled(1 / chunks),)))
        assert set(simulation.bubble) == {21 / chunks}


def test_zb_v_has_no_bubble_inside_a_ranks_span():
    """With F = I = W (Qi et al., section 6), given micro-batches enough to fill the pipeline."""
    for ranks in (1, 2, 4, 8):
        simulation = simulate(generate("zb_v", ranks, 4 * ranks), Costs((UNIT,)))
        spans = [timed[-1].end - timed[0].start for timed in simulation.timeline]
        assert spans == list(simulation.busy)


def test_dualpipev_over_1f1b_on_two_ranks():
    """The same model at P=2, M=8, W half of B: 25 over 27."""
    v = makespan("dualpipev", 2, 8, stage=UNIT.scaled(0.5), early=False)
    assert (v, makespan("1f1b", 2, 8)) == (25, 27)
