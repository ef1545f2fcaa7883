"""Bytes held for backward: measured against the plan, over lengths, streams, kinds and live micro-batches."""

import gc
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hcmegatron.config.schema import Connection
from hcmegatron.connections.kinds import KINDS
from hcmegatron.recompute.block_checkpoint import Block, BlockCheckpoint, Handle
from hcmegatron.recompute.block_plan import best_length, blocks, expected_terms, objective, plan_blocks
from hcmegatron.recompute.measure_terms import measure_terms
from hcmegatron.recompute.meter import Meter, MeteredPolicy
from tests.recompute.stack import Stack

TOKENS = 16


def terms_of(stack):
    device = torch.device("cpu")
    return measure_terms(stack.sublayers[0], stack.width, stack.C, TOKENS, stack.dtype, device)


def run(stack, length, live=1):
    """(kept, peak) of `live` micro-batches whose forwards run before the first backward."""
    meter = Meter(stack)
    lengths = blocks(len(stack.sublayers), length)
    outputs = [stack(stack.input(TOKENS, seed), BlockCheckpoint(lengths, meter)) for seed in range(live)]
    outputs.pop(0).sum().backward()  # while all are live
    del outputs
    assert meter.bytes() == 0, "something outlived its graph"
    return meter.kept, meter.peak


def first_peak(stack, length, live):
    """The peak of `run`, which comes with the first block that is rebuilt (the tests of `run` show that)."""
    meter = Meter(stack)
    tapes = [BlockCheckpoint(blocks(len(stack.sublayers), length), meter) for _ in range(live)]
    outputs = [stack(stack.input(TOKENS, seed), tape) for seed, tape in enumerate(tapes)]
    tapes[0].block.rebuild()
    assert len(outputs) == live
    return meter.peak


def without(stack):
    """Bytes that connections and norms hold when nothing is recomputed."""
    meter = Meter(stack)
    output = stack(stack.input(TOKENS), MeteredPolicy(meter))
    held = meter.bytes()
    output.sum().backward()
    return held


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("sublayers", [4, 7, 60])
def test_measured_bytes_are_the_plan_s(n, sublayers):
    stack = Stack("mhc", n, sublayers)
    terms = terms_of(stack)
    for length in sorted({best_length(sublayers, terms), 1 if sublayers < 60 else sublayers}):
        chosen = plan_blocks(sublayers, str(length), terms, live=1)
        kept, peak = run(stack, length)
        assert kept == pytest.approx(chosen.kept, rel=0.01)
        assert peak == pytest.approx(chosen.peak, rel=0.01)
    assert without(stack) == pytest.approx(chosen.without, rel=0.01)


@pytest.mark.parametrize("kind", ["shc", "dhc", "sfc", "dfc", "ihc", "gr"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.1}, {"norm": "layernorm"}, {"dtype": torch.bfloat16}])
def test_every_kind_by_its_own_terms(kind, options):
    stack = Stack(kind, 4, 7, **options)
    chosen = plan_blocks(7, "3", terms_of(stack), live=2)
    kept, peak = run(stack, 3, live=2)
    assert (kept, peak) == pytest.approx((chosen.kept, chosen.peak), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "residual"])
def test_the_counts_without_torch_agree(kind, dtype):
    stack = Stack(kind, 4, 1, C=512, norm="layernorm", dtype=dtype)
    measured = measure_terms(stack.sublayers[0], stack.width, 512, 10_000, dtype, torch.device("cpu"))
    expected = expected_terms(Connection(kind=kind, n=4), 512, dtype.itemsize, 10_000)
    assert (expected.streams, expected.output) == (measured.streams, measured.output)
    assert expected.rebuilt == pytest.approx(measured.rebuilt, rel=0.005)


@pytest.mark.parametrize(("sublayers", "live"), [(13, 1), (24, 1), (16, 4)])
def test_the_chosen_length_is_the_measured_best(sublayers, live):
    stack = Stack("mhc", 4, sublayers)
    chosen = plan_blocks(sublayers, "live" if live > 1 else "paper", terms_of(stack), live)
    measured = {length: first_peak(stack, length, live) for length in range(1, sublayers + 1)}
    assert measured[chosen.length] <= 1.02 * min(measured.values())
    assert max(measured.values()) > 1.3 * min(measured.values())  # it does matter


def test_60_sublayers_of_4_streams_keep_a_quarter_and_peak_at_a_third():
    stack = Stack("mhc", 4, 60)
    chosen = plan_blocks(60, "paper", terms_of(stack), live=1)
    kept, peak = run(stack, chosen.length)
    everything = without(stack)
    assert kept < 0.25 * everything
    assert peak < 0.34 * everything


def test_the_allocator_agrees():
    """What the profiler counts as allocated and not yet freed after forward, without any of our own counting."""
    stack = Stack("mhc", 4, 20)

    def retained(activation_policy):
        x = stack.input(TOKENS)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            output = stack(x, activation_policy)
            del activation_policy
        total = sum(event.self_cpu_memory_usage for event in trace.events())
        own = output.untyped_storage().nbytes()
        output.sum().backward()
        return total - own

    chosen = plan_blocks(20, "4", terms_of(stack), live=1)
    first = chosen.terms.streams  # the stack's own input is there before
    meter = Meter(stack)
    assert retained(BlockCheckpoint(blocks(20, 4))) == pytest.approx(chosen.kept - first, rel=0.02)
    assert retained(MeteredPolicy(meter)) == pytest.approx(chosen.without - first, rel=0.02)


def test_the_graph_holds_what_the_meter_says():
    """Walks the autograd graph from the output over everything that it saved."""
    stack = Stack("mhc", 4, 9)
    meter = Meter(stack)
    output = stack(stack.input(TOKENS), BlockCheckpoint(blocks(9, 4), meter))
    packed, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_raw_saved"):
                saved = getattr(node, name)
                packed += [s.data for s in (saved if isinstance(saved, tuple | list) else [saved])]
    held = {tensor for item in packed if isinstance(item, Handle) for tensor in item.block.tensors()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(storages.values()) == meter.bytes() > 0
    assert {id(item.block) for item in packed if isinstance(item, Handle)} == {
        id(holder) for holder in meter._holders if isinstance(holder, Block)
    }


def test_objective_is_the_paper_s():
    terms = terms_of(Stack("mhc", 4, 2))
    assert objective(60, 7, terms, 3) == 3 * terms.streams * math.ceil(60 / 7) + terms.rebuilt * 7
