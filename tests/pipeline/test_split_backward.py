"""Backwards whose gradient leaves first (parallel.split_backward): the same numbers, in the order that it says."""

import pytest

from hcmegatron.config.schema import Config, has_to_split, splits_backward
from hcmegatron.pipeline.configured_schedule import training_schedule
from schedules.actions import Kind
from tests.pipeline import overlap_workers
from tests.pipeline.cases import config_for
from tests.ranks import run_ranks

MICRO_BATCHES = 8
RUN = {"preload": ("tests.pipeline.overlap_workers",), "timeout": 200}
SCHEDULES = ("gpipe", "1f1b", "dualpipev", "dualpipe", "interleaved")


def kinds(config):
    return {
        part.kind
        for actions in training_schedule(config, MICRO_BATCHES).actions
        for action in actions
        for part in action.parts
    }


@pytest.mark.ranks
@pytest.mark.parametrize(
    "sections",
    [{}, {"training": {"dtype": "bf16"}}, {"recompute": {"mode": "block"}}],
    ids=["fp32", "bf16", "recomputed"],
)
def test_the_numbers_are_those_of_whole_backwards_bit_for_bit(sections):
    cases = [("mhc", True, name) for name in SCHEDULES] + [("dfc", False, "1f1b")]
    configs = [
        config_for(kind, moe, name, 2, parallel={"split_backward": split}, **sections)
        for kind, moe, name in cases
        for split in (False, True)
    ]
    assert [Kind.I in kinds(config) for config in configs[2:4]] == [False, True]
    for rank, steps in enumerate(run_ranks(2, overlap_workers.steps, configs, MICRO_BATCHES, **RUN)):
        for case, whole, split in zip(cases, steps[::2], steps[1::2], strict=True):
            assert rank == 0 or whole.called != split.called, case  # rank 0 may send no gradient
            assert whole.loss == split.loss, case
            assert len(whole.bits) > 10 and whole.bits == split.bits, case


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"schedule": "gpipe"}, True),
        ({"schedule": "megatron_1f1b"}, False),
        ({"schedule": "megatron_1f1b", "split_backward": True}, False),
        ({"pipeline": 1, "split_backward": True}, False),
        ({"schedule": "dualpipev", "overlap": True}, False),
        ({"schedule": "dualpipev", "overlap": True, "split_backward": True}, True),
        ({"split_backward": False}, False),
    ],
)
@pytest.mark.parametrize("mode", ["none", "block", "selective", "full"])
def test_null_is_where_layers_are_not_recomputed_whole_and_nothing_overlaps(changes, expected, mode):
    config = Config()
    config.parallel.pipeline, config.parallel.schedule, config.recompute.mode = 2, "1f1b", mode
    for name, value in changes.items():
        setattr(config.parallel, name, value)
    asked = changes.get("split_backward") is not None
    assert splits_backward(config) == (expected and (asked or mode != "full"))
    named = changes.get("split_backward") is True and expected
    assert has_to_split(config) == (named or changes.get("schedule") == "dualpipev")
