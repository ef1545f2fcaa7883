"""The time of a step: parts that sum to it, bounds below it, and what makes it longer."""

from dataclasses import replace

import pytest

from hcmegatron.connections.kinds import KINDS
from hcmegatron.planner import step_time as timing
from hcmegatron.planner.layout import Group
from hcmegatron.planner.operations import connection_traffic
from hcmegatron.planner.plan import make_plan, overheads, without_connection
from hcmegatron.planner.step_memory import step_memory
from hcmegatron.planner.step_time import PARTS, lower_bound, step_time
from tests.planner.cases import SCHEDULES, config, find_machine, operations, pipelined


def timed(loaded, gpus=64, **assumed):
    own = operations(loaded, gpus, **assumed)
    return step_time(own.layout, own)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("recompute", ["none", "block", "full"])
def test_parts_sum_to_the_step_on_every_rank_and_no_bound_exceeds_it(schedule, recompute):
    own = operations(pipelined(schedule, recompute__mode=recompute), 256)
    time = step_time(own.layout, own)
    for parts in time.parts:
        assert parts.total() == pytest.approx(time.total, rel=1e-9)
        assert set(parts) <= set(PARTS) and min(parts.values()) >= -1e-9 * time.total
    assert lower_bound(own.layout, own) <= time.total * (1 + 1e-12)
    if schedule == "1f1b":  # and it is a good bound
        assert lower_bound(own.layout, own) > 0.9 * time.total


@pytest.mark.parametrize("microbatches", [40, 42])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_long_step_is_extrapolated_from_its_steady_state(schedule, microbatches, monkeypatch):
    """To rounding, memory included; what has no steady state is simulated whole."""
    own = operations(pipelined(schedule, training__global_batch=8 * microbatches), 32)
    short = step_time(own.layout, own)
    exact = schedule == "gpipe" or (schedule == "interleaved" and microbatches % 4)
    assert (short.simulation.schedule.microbatches == microbatches) == bool(exact)
    monkeypatch.setattr(timing, "SIMULATED", 1000)
    whole = step_time(own.layout, own)
    assert whole.simulation.schedule.microbatches == microbatches
    assert short.total == pytest.approx(whole.total, rel=1e-9)
    for a, b in zip(short.parts, whole.parts, strict=True):
        # how standing still is shared out between these may still drift with M
        for parts in (a, b):
            parts["waiting"] = parts.pop("bubble") + parts.pop("hops") + parts.pop("all-to-alls")
        assert a == pytest.approx(b, abs=1e-9 * whole.total)
    peaks = [
        [memory.peak.total() for memory in step_memory(own.layout, own, time.simulation)]
        for time in (short, whole)
    ]
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-9)


def test_gpipe_s_time_needs_no_whole_simulation(monkeypatch):
    """Its memory, which grows with every micro-batch, does, once somebody asks for it."""
    own, simulated = operations(pipelined("gpipe", training__global_batch=8 * 320), 32), []
    usual = timing.simulate
    monkeypatch.setattr(
        timing,
        "simulate",
        lambda schedule, *rest: simulated.append(schedule.microbatches) or usual(schedule, *rest),
    )
    found = step_time(own.layout, own)
    assert simulated == [12, 16] and found.total > 0
    assert found.simulation.schedule.microbatches == 320 and simulated == [12, 16, 320]
    assert found.simulation is found.simulation and len(simulated) == 3


def test_connections_move_what_kernels_move():
    """At C = 2560 and 8192 tokens: 18 and 32 elements of C a token take 253 and 449 us at 3.0 TB/s."""
    folded, alone = config(), config(connection__kind="dhc", kernels="auto")
    assert connection_traffic(folded) == (14, 32)
    assert connection_traffic(alone) == (18, 32)
    assert connection_traffic(config(connection__kind="residual")) == (3, 3)
    assert connection_traffic(config(connection__kind="shc")) == (14, 14 + 13)
    ihc = config(connection__kind="ihc")  # folded, and with a write whose backward has no streams to multiply
    assert connection_traffic(ihc) == (14, 6 + 18)
    # more streams than the kernels hold: plain torch, which moves twice as much
    assert connection_traffic(config(connection__n=9)) == (2 * (19 + 19), 2 * (29 + 38))
    loaded = config(connection__kind="dhc", training__micro_batch=2, training__global_batch=512)
    own = operations(loaded, 256, kernels=1.0)
    (first, *_) = [op for op in own.of_layer(1).operations if op.family == "connections"]
    assert first.forward == pytest.approx(253e-6, rel=0.01)
    assert first.dgrad == pytest.approx(449e-6, rel=0.01)


def test_a_kind_that_norms_its_read_or_has_no_kernels_is_planned_so(monkeypatch):
    plain = operations(config(), 256).of_layer(1)
    changed = replace(KINDS["mhc"], normalises=True, kernels=False)
    monkeypatch.setitem(KINDS, "mhc", changed)
    own = operations(config(), 256).of_layer(1)
    assert plain.kept - own.kept == 2 * 4096 * 2560 * 2 and plain.left == own.left
    assert all(op.forward == op.dgrad == 0 for op in own.operations if op.name == "norm")
    assert connection_traffic(config()) == (2 * 18, 2 * 32)


def test_pairs_hide_all_to_alls():
    plain = timed(pipelined("dualpipev"), hide=False)
    paired = timed(pipelined("dualpipev"))
    assert paired.total < plain.total
    for a, b in zip(paired.parts, plain.parts, strict=True):
        assert 0 <= a["all-to-alls"] < b["all-to-alls"]
        assert a["forward"] == pytest.approx(b["forward"])


def test_pairs_that_do_not_overlap_hide_hops():
    """Whole in lockstep; else split, so that a gradient's hop hides behind W."""
    apart = pipelined("dualpipev")
    apart.parallel.overlap = False
    assert timed(apart).total < timed(apart, hide=False).total


def test_tokens_are_gathered_among_those_who_split_an_expert():
    """Two of them, whether or not attention is split too."""
    loaded = config(parallel__expert=4, parallel__expert_tensor=2)
    own = operations(loaded, 8, imbalance=1.0)
    (dispatch,) = [op for op in own.of_layer(1).operations if op.name == "dispatch"]
    one = 4096 * 2560 * 2  # bytes of a copy of the micro-batch's tokens
    sent = loaded.moe.top_k * one
    exchanged = own.rates.all_to_all(sent, Group(4, 4), loaded.moe.top_k)
    assert dispatch.forward == pytest.approx(exchanged + own.rates.ring(2 * sent, Group(2, 2)))


def test_dualpipe_sums_its_copies_and_the_v_has_none():
    assert timed(pipelined("dualpipe")).parts[0]["mirrors"] > 0
    assert timed(pipelined("dualpipev")).parts[0]["mirrors"] == 0


def test_reductions_overlap_where_asked():
    plain = timed(pipelined("1f1b")).parts[0]
    overlapped = timed(
        pipelined("1f1b", parallel__overlap_grad_reduce=True, parallel__overlap_param_gather=True)
    ).parts[0]
    for part in ("gradient reduction", "parameter gather"):
        assert overlapped[part] == pytest.approx(0.1 * plain[part], rel=0.01)


def test_an_all_reduce_overlaps_as_a_whole():
    whole = {"parallel__distributed_optimizer": False, "training__micro_batch": 4}
    plain, overlapped = (
        timed(pipelined("1f1b", parallel__overlap_grad_reduce=overlap, **whole)).parts[0]
        for overlap in (False, True)
    )
    assert overlapped["gradient reduction"] == pytest.approx(0.1 * plain["gradient reduction"], rel=0.01)
    assert plain["parameter gather"] == overlapped["parameter gather"] == 0


def test_recomputation_takes_the_forward_again():
    plain, full = operations(pipelined("1f1b"), 64), operations(pipelined("1f1b", recompute__mode="full"), 64)
    layers = sum(layer.phases[0] for layer in plain.of_stage(0).layers)
    parts = step_time(full.layout, full).parts[0]
    assert parts["recomputation"] == pytest.approx(full.layout.microbatches * layers)
    assert parts["forward"] == step_time(plain.layout, plain).parts[0]["forward"]
    block = operations(pipelined("1f1b", recompute__mode="block"), 64)
    again = [op.name for op in block.of_layer(1).operations if op.again]
    assert again == ["connection", "norm"] * 2


def test_an_imbalance_of_experts_lengthens_the_experts_alone():
    even, uneven = timed(pipelined("1f1b"), imbalance=1.0), timed(pipelined("1f1b"), imbalance=1.5)
    assert uneven.total > even.total
    assert uneven.parts[0]["connections"] == even.parts[0]["connections"]
    dense = config("olmo-1b", parallel__pipeline=2)
    assert timed(dense, imbalance=1.0).total == timed(dense, imbalance=1.5).total


def test_wider_streams_cost_hops():
    loaded = pipelined("1f1b")
    wide, narrow = (timed(loaded, 64), timed(pipelined("1f1b", connection__kind="residual"), 64))
    messages = [time.simulation.costs.message_bytes for time in (wide, narrow)]
    assert messages[0] == 4 * messages[1] == 4 * 4096 * 2560 * 2


def test_mhc_beside_the_paper_s_overhead():
    """The paper's 6.7% at 27B, n = 4, lies between kernels at 80% and at 100% of copy speed and those at 50%."""
    plan = make_plan(pipelined("dualpipev"), find_machine("h100"), 256)
    half, most, all_of_it, bare = (row.share for row in overheads(plan))
    assert all_of_it < 0.067 < half and all_of_it < most < half and most < bare
    assert all_of_it > 0.04 and half < 0.15
    assert (
        overheads(make_plan(pipelined("1f1b", connection__kind="residual"), find_machine("h100"), 256)) == []
    )


def test_the_residual_beside_a_connection_is_planned_as_it_would_be_alone():
    """Its gradients and optimizer too, without the connections' parameters."""
    plan = make_plan(pipelined("dualpipev"), find_machine("h100"), 256)
    row = next(row for row in overheads(plan) if row.assuming == "kernels at 80% of copy speed")
    assert row.seconds == plan.seconds
    assert row.residual == make_plan(without_connection(plan.config), find_machine("h100"), 256).seconds


def test_a_faster_machine_is_faster():
    loaded = pipelined("dualpipev")
    plans = [make_plan(loaded, find_machine(gpu), 256) for gpu in ("a100", "h100", "b200")]
    seconds = [plan.seconds for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    for plan in plans:
        assert 0.1 < plan.utilisation(plan.model_flops) <= plan.utilisation(plan.hardware_flops) < 0.75
