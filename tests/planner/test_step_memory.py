"""What a rank holds: by component, over the step, and beside what autograd really holds."""

import pytest

from hcmegatron.planner.changes import lighter_plans
from hcmegatron.planner.machines import GIB
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.search import least_peak
from hcmegatron.planner.step_memory import (
    COMPONENTS,
    MOVING,
    chunk_memory,
    communicators,
    in_dispatchers,
    least_bytes,
    least_static,
    static_memory,
    step_memory,
)
from hcmegatron.planner.step_time import step_time
from hcmegatron.recompute.block_plan import expected_terms, plan_blocks
from tests.planner import kept_workers
from tests.planner.cases import SCHEDULES, config, find_machine, operations, pipelined
from tests.ranks import run_ranks


def held(loaded, gpus=64, **assumed):
    own = operations(loaded, gpus, **assumed)
    time = step_time(own.layout, own)
    return own, time, step_memory(own.layout, own, time.simulation)


@pytest.mark.parametrize("recompute", ["none", "block", "full"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_peak_is_the_most_of_a_walk_over_the_actions(schedule, recompute):
    """Activations alone, action by action in the order of their ends and starts, against the curve."""
    own, time, memory = held(pipelined(schedule, recompute__mode=recompute))
    for rank, found in enumerate(memory):
        chunks = [chunk_memory(own.layout, own, stage) for stage in range(len(own.layout.stages))]
        events = []
        for timed in time.simulation.timeline[rank]:
            for part in timed.action.parts:
                kept = chunks[own.layout.placement.model_stage(part.stage)].kept
                if part.kind == "F":
                    events.append((timed.start, 1, kept))
                elif part.kind != "W":
                    events.append((timed.end, 0, -kept))
        lasting = in_dispatchers(own.layout, rank)
        total = most = lasting
        for _, _, size in sorted(events):
            total += size
            most = max(most, total)
        kept = MOVING.index("activations")
        assert max(moment.held[kept] for moment in found.curve) == pytest.approx(most)
        pool = found.curve[0].held[MOVING.index("receive buffers")]
        assert found.curve[-1].held == pytest.approx([lasting, 0.0, pool, 0.0, 0.0], abs=1.0)
        assert set(found.peak) == set(COMPONENTS) and min(found.peak.values()) >= 0
        assert least_bytes(own.layout) <= max(m.peak.total() for m in memory)
        assert least_peak(own.layout, own) <= max(m.peak.total() for m in memory)


def test_live_chunks_are_the_schedules_own():
    """1F1B holds P - r; DualPipeV P + 1 counting until W, so at least P until I; GPipe all."""
    for schedule, live in (("1f1b", [4, 3, 2, 1]), ("gpipe", [160] * 4)):
        _, _, memory = held(pipelined(schedule), 32)
        assert [found.chunks for found in memory] == live
    _, _, memory = held(pipelined("dualpipev"), 32)
    assert all(4 <= found.chunks <= 9 for found in memory)


def test_states_shard_dense_and_experts_apart():
    loaded = pipelined("1f1b")
    own = operations(loaded, 256)
    of_rank = static_memory(own.layout, 1)
    from hcmegatron.planner.counts import held_parameters

    count = held_parameters(own.layout, 1)
    theirs = count["connections"]  # in fp32
    usual = count.total() - count["experts"] - theirs
    # to the padding of norms and buckets
    assert of_rank["weights"] == pytest.approx(2 * (usual + count["experts"]) + 4 * theirs, rel=1e-4)
    assert of_rank["gradients"] == pytest.approx(4 * count.total(), rel=1e-4)
    state = 12 * (usual / 64 + count["experts"] / 8) + 8 * theirs / 64
    assert of_rank["optimizer state"] == pytest.approx(state, rel=1e-4)
    assert least_static(own.layout, 1) == pytest.approx(of_rank.total(), rel=1e-4)
    assert least_static(own.layout, 1) < of_rank.total()


def test_dualpipe_holds_two_copies():
    one, two = (operations(pipelined(name), 64) for name in ("dualpipev", "dualpipe"))
    held_by = [sum(static_memory(own.layout, rank)["weights"] for rank in range(4)) for own in (one, two)]
    assert held_by[1] == pytest.approx(2 * held_by[0], rel=1e-4)  # to padding


def test_block_recomputation_keeps_what_its_plan_says():
    loaded = pipelined("1f1b", recompute__mode="block")
    own, bare = operations(loaded, 64), operations(pipelined("1f1b"), 64)
    terms = expected_terms(loaded.connection, 2560, 2, 4096)
    chosen = plan_blocks(16, "paper", terms)
    inside = chunk_memory(own.layout, own, 0).kept - chosen.one
    around = (terms.rebuilt + terms.output) * 16
    assert chunk_memory(bare.layout, bare, 0).kept - around == pytest.approx(inside)


def test_recomputation_and_narrow_streams_hold_less():
    kept = {}
    for mode in ("none", "block", "full"):
        own = operations(pipelined("1f1b", recompute__mode=mode), 64)
        kept[mode] = chunk_memory(own.layout, own, 1).kept
    assert kept["full"] < kept["block"] < kept["none"]
    # full: the streams that enter each of 7 layers
    assert kept["full"] == 7 * 4 * 2560 * 2 * 4096
    bare = operations(pipelined("1f1b", connection__kind="residual"), 64)
    assert chunk_memory(bare.layout, bare, 1).kept < kept["none"]


def test_split_backward_leaves_what_weight_gradients_need():
    _, _, memory = held(pipelined("zb_h1"))
    left = MOVING.index("deferred weight gradients")
    assert max(moment.held[left] for moment in memory[0].curve) > 0
    _, _, memory = held(pipelined("1f1b"))
    assert all(moment.held[left] == 0 for moment in memory[0].curve)


def test_a_latent_of_queries_waits_for_its_weight_gradients():
    """As the input of one matmul, and its gradient as the output's of another."""
    full, low = (operations(pipelined("zb_h1", mla__q_rank=rank), 64) for rank in (None, 512))
    left = [own.of_layer(1).left for own in (full, low)]
    assert left[1] - left[0] == 2 * 512 * 4096 * 2


def test_an_imbalance_fills_the_experts_rank():
    even, uneven = (operations(pipelined("1f1b"), 64, imbalance=x) for x in (1.0, 1.5))
    assert chunk_memory(uneven.layout, uneven, 1).kept > chunk_memory(even.layout, even, 1).kept
    bare = config("olmo-1b")
    a, b = (operations(bare, 8, imbalance=x) for x in (1.0, 1.5))
    assert chunk_memory(a.layout, a, 0) == chunk_memory(b.layout, b, 0)


def test_communicators_are_counted_where_there_are_several_ranks():
    assert communicators(operations(config(), 1).layout) == 0
    assert communicators(operations(pipelined("1f1b"), 64).layout) == 5  # expert, data, expert data, two hops


def test_what_does_not_fit_says_what_would():
    plan = make_plan(config(), find_machine("h100"), 256)
    assert not plan.fits and plan.peak > 190 * GIB
    changes = lighter_plans(plan)
    assert len(changes) == 3
    seconds = [change.plan.seconds for change in changes]
    assert seconds == sorted(seconds)
    for change in changes:
        assert change.plan.fits
        again = make_plan(change.plan.config, find_machine("h100"), 256)
        assert again.peak == change.plan.peak and str(change).startswith("--parallel.")


SMALL = {
    "model__layers": 2,
    "model__hidden_size": 128,
    "model__heads": 4,
    "model__vocab_size": 384,
    "data__sequence_length": 32,
    "training__global_batch": 2,
    "training__micro_batch": 2,
    "optimizer__warmup_steps": 0,
}
MOE = {"moe__experts": 8, "moe__top_k": 3, "moe__ffn_hidden_size": 32}
LATENT = {"model__head_dim": 16, "mla__kv_rank": 24, "mla__rope_dim": 8, "model__ffn_hidden_size": 96}
MODELS = {
    "mhc": ("mhc-3b", {**LATENT, **MOE}),
    "dhc": ("olmo-1b", {"model__ffn_hidden_size": 96}),
    "mla with a residual": ("mhc-3b", {**LATENT, **MOE, "connection__kind": "residual"}),
    "dense": ("olmo2-1b", {"model__ffn_hidden_size": 96, "connection__kind": "residual"}),
    "experts": ("olmoe-1b-7b", {**MOE, "connection__kind": "residual"}),
}


@pytest.mark.ranks
def test_chunks_keep_what_autograd_really_holds():
    """To 3%: indices and statistics of norms are not counted. Norms are LayerNorms, whose kernel is one operation on
    CPU as RMSNorm's is on a GPU."""
    shared = {**SMALL, "model__norm": "layernorm_plain", "kernels": "torch"}
    configs = [config(name, **shared, **changes) for name, changes in MODELS.values()]
    (found,) = run_ranks(1, kept_workers.held, configs, preload=("tests.model.workers",), timeout=120)
    for model, loaded, (measured, shapes) in zip(MODELS, configs, found, strict=True):
        own = operations(loaded, 1, imbalance=1.0)
        counted = chunk_memory(own.layout, own, 0).kept
        assert counted == pytest.approx(measured, rel=0.03), (
            model,
            counted / measured,
            shapes.most_common(12),
        )
