"""Masks of dropout: one process's under every layout and schedule, other ones wherever values differ, and the same ones
when they are drawn again."""

import copy
from collections import Counter

import pytest

from tests.layouts.table import largest_error
from tests.pipeline import dropout_workers
from tests.pipeline.dropout_cases import LAYERS, LIMIT, MICRO_BATCH, MICRO_BATCHES, PIPELINE, RUN, network
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

HIDDEN = {"embedding"} | {
    f"layers.{layer}.{part}" for layer in range(LAYERS) for part in ("attention", "mlp")
}
CORE = {f"layers.{layer}.core_attention" for layer in range(LAYERS)}
SAMPLES = range(0, MICRO_BATCHES * MICRO_BATCH, MICRO_BATCH)


def run(ranks, configs, **options):
    """Per configuration, the step of every rank."""
    found = run_ranks(ranks, dropout_workers.steps, configs, kwargs=options, **RUN)
    return list(zip(*found, strict=True))


def masks_of(ranks):
    """What every rank drew, by micro-batch and place: each draw of one agrees with the others."""
    found = {}
    for step in ranks:
        known = {mask.kept for mask in step.masks if mask.place}
        for mask in step.masks:
            if not mask.place:
                assert mask.kept in known, "a mask drawn again is not the one before"
                continue
            assert found.setdefault((mask.first_sample, mask.place), mask.kept) == mask.kept, mask
    return found


def draws(ranks):
    return Counter((mask.first_sample, mask.place) for step in ranks for mask in step.masks)


V = {"pipeline": 2, "schedule": "dualpipev"}
MODULES = {"modules": ["core_attn", "mla_up_proj", "mlp", "shared_experts"]}
# One process's masks, and each drawn once.
LAYOUTS = {
    "DP 2": {},
    "EP 2": {"expert": 2},
    "PP 2, Megatron's": {"pipeline": 2},
    "PP 2 x VPP 2, Megatron's": {"pipeline": 2, "schedule": "megatron_interleaved", "virtual": 2},
    "PP 2": PIPELINE,
    "ZB-V": {"pipeline": 2, "schedule": "zb_v"},
    "DualPipeV": V,
    "DualPipeV, overlapped": V | {"overlap": True},
    "DualPipe": {"pipeline": 2, "schedule": "dualpipe"},
    "DualPipe, overlapped": {"pipeline": 2, "schedule": "dualpipe", "overlap": True},
}
# The same masks, some of them more than once.
RECOMPUTED = {
    "block": PIPELINE | {"recompute": {"mode": "block"}},
    "block, overlapped": V | {"overlap": True, "recompute": {"mode": "block"} | MODULES},
    "full": PIPELINE | {"recompute": {"mode": "full"}},
    "full, overlapped": V | {"overlap": True, "recompute": {"mode": "full"}},
    "selective": PIPELINE | {"recompute": {"mode": "selective"} | MODULES},
}


@pytest.fixture(scope="module")
def alone():
    reference = network()
    reference.moe.grouped = False
    ((step,),) = run(1, [reference])
    return step


def test_one_process_draws_no_mask_twice(alone):
    masks = masks_of([alone])
    assert set(masks) == {(sample, place) for sample in SAMPLES for place in HIDDEN | CORE}
    assert set(draws([alone]).values()) == {1}
    assert len(set(masks.values())) == len(masks)


def test_every_layout_has_the_masks_and_the_result_of_one_process(alone):
    steps = run(2, [network(**settings) for settings in (LAYOUTS | RECOMPUTED).values()])
    for (name, settings), ranks in zip((LAYOUTS | RECOMPUTED).items(), steps, strict=True):
        assert masks_of(ranks) == masks_of([alone]), name
        assert largest_error(alone.outcome, [step.outcome for step in ranks]) < LIMIT, name
        drawn = draws(ranks)
        again = sum(drawn.values()) - len(masks_of([alone]))
        assert (again > 0) == ("recompute" in settings), (name, again)


def test_shared_masks_are_seen(alone):
    """Ranks whose generators start the same and go on."""
    for ranks in run(2, [network(), network(**PIPELINE)], shared=True):
        assert len({mask.kept for step in ranks for mask in step.masks}) == len(ranks[0].masks)
        assert largest_error(alone.outcome, [step.outcome for step in ranks]) > 100 * LIMIT


def test_document_masks():
    """With a mask attention takes another way through torch."""
    reference = network("dense", "dhc", document_mask=True)
    ((step,),) = run(1, [reference])
    (ranks,) = run(2, [network("dense", "dhc", document_mask=True, **V)])
    assert masks_of(ranks) == masks_of([step])
    assert len(set(masks_of(ranks).values())) == MICRO_BATCHES * len(HIDDEN | CORE)
    assert largest_error(step.outcome, [one.outcome for one in ranks]) < LIMIT


@pytest.mark.parametrize("sequence", [False, True])
def test_tensor_parallel_ranks_share_the_masks_of_what_they_share(sequence):
    """All hold the whole of hidden values, but under sequence parallelism; each has other heads."""
    layout = {"tensor": 2, "sequence": sequence}
    plain = network("moe" if sequence else "dense", **layout)
    again = copy.deepcopy(plain)
    again.recompute.mode = "full"
    for ranks in run(2, [plain, again]):
        first, second = (masks_of([step]) for step in ranks)
        assert set(first) == set(second) == {(s, place) for s in SAMPLES for place in HIDDEN | CORE}
        equal = {place for _, place in first} & {p for (s, p), kept in first.items() if second[s, p] == kept}
        assert equal == (set() if sequence else HIDDEN)
        different = len(first) + sum(place in CORE or sequence for _, place in second)
        assert len({*first.values(), *second.values()}) == different


def test_hidden_dropout_under_tensor_parallelism_is_that_of_one_process():
    reference, layout = network("dense"), network("dense", tensor=2)
    reference.model.attention_dropout = layout.model.attention_dropout = 0.0  # other heads, other masks
    ((step,),), (ranks,) = run(1, [reference]), run(2, [layout])
    assert masks_of(ranks) == masks_of([step])
    assert largest_error(step.outcome, [one.outcome for one in ranks]) < LIMIT


def test_nothing_is_seeded_without_dropout():
    config = network("dense")
    config.model.hidden_dropout = config.model.attention_dropout = 0.0
    ((step,),) = run(1, [config])
    assert step.generator_untouched and not step.masks


def test_evaluation_draws_nothing():
    for masks, untouched in run_ranks(2, dropout_workers.evaluation, network(**V), **RUN):
        assert untouched and not masks
