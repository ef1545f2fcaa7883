"""Agreement, action for action, with torch.distributed.pipelining's schedules (its classes that write out an
order; none is executed). ZB-H1 is its InterleavedZeroBubble with one stage per rank. DualPipe it does not
have."""

from unittest import mock

import pytest

from schedules.csv_form import to_csv
from schedules.generators import generate
from schedules.generators.interleaved import interleaved

theirs = pytest.importorskip("torch.distributed.pipelining.schedules", reason="torch has no pipelining")

SIZES = [
    (P, M) for P in (1, 2, 3, 4, 6) for M in sorted({1, 2, P, P + 1, 2 * P - 1, 2 * P, 2 * P + 1, 4 * P})
]
CLASSES = {
    "gpipe": (theirs.ScheduleGPipe, 1),
    "1f1b": (theirs.Schedule1F1B, 1),
    "zb_h1": (theirs.ScheduleInterleavedZeroBubble, 1),
    "zb_v": (theirs.ScheduleZBVZeroBubble, 2),
    "dualpipev": (theirs.ScheduleDualPipeV, 2),
}


def torch_order(cls, P, M, chunks):
    stage = mock.create_autospec(theirs.PipelineStage, instance=True)
    stage.group_rank, stage.group_size, stage.num_stages, stage.submod = 0, P, P * chunks, None
    if issubclass(cls, theirs.PipelineScheduleSingle):
        order = cls(stage, M)._get_pipeline_order()
    else:
        order = cls([stage] * chunks, M).pipeline_order
    skip = (None, theirs.REDUCE_GRAD)
    return [[str(a) for a in order[r] if a and a.computation_type not in skip] for r in range(P)]


def our_order(schedule):
    return [[str(a) for a in actions] for actions in schedule.actions]


@pytest.mark.parametrize("name", ["gpipe", "zb_h1", "zb_v", "dualpipev"])
def test_the_same_actions_in_the_same_order(name):
    cls, chunks = CLASSES[name]
    compared = 0
    for P, M in SIZES:
        if name == "dualpipev" and M < 2 * P:
            continue  # refused by both
        if name == "zb_h1" and M % max(1, M // P):
            continue  # torch refuses M that are no multiple of its rounds, though one stage per rank needs none
        assert our_order(generate(name, P, M)) == torch_order(cls, P, M, chunks), (P, M)
        compared += 1
    assert compared >= 14


def test_1f1b_up_to_the_last_ranks_numbering():
    """Torch's text of 1F1B numbers the last rank's forwards 1 .. M where they are 0 .. M-1: it counts on from
    a warm-up forward that this rank does not have. (What it executes is right: only its drawing goes wrong.)
    It also refuses M < P."""
    for P, M in SIZES:
        if M < P:
            continue
        ours, torch = our_order(generate("1f1b", P, M)), torch_order(*CLASSES["1f1b"][:1], P, M, 1)
        assert ours[:-1] == torch[:-1], (P, M)
        last = P - 1
        shifted = [f"{last}F{int(a.split('F')[1]) - 1}" if "F" in a else a for a in torch[-1]]
        assert ours[-1] == shifted and ours[-1] != torch[-1], (P, M)


@pytest.mark.parametrize("chunks", [2, 3])
def test_interleaved(chunks):
    """Where M does not divide into equal groups, torch refuses it and we make some groups larger."""
    compared = 0
    for P, M in SIZES:
        if M % max(1, M // P):
            with pytest.raises(ValueError, match="multiple of the number of rounds"):
                torch_order(theirs.ScheduleInterleaved1F1B, P, M, chunks)
            interleaved(P, M, chunks)
            continue
        assert our_order(interleaved(P, M, chunks)) == torch_order(
            theirs.ScheduleInterleaved1F1B, P, M, chunks
        )
        compared += 1
    assert compared >= 14


@pytest.mark.parametrize("name", ["zb_v", "dualpipev", "interleaved"])
def test_torch_reads_our_csv(name, tmp_path):
    """Its loader parses every cell, validates the schedule and finds the same placement; so it does with the
    file that has sends and receives, whose computation is unchanged."""
    schedule = generate(name, 4, 8)
    rows = [line.split(",") for line in to_csv(schedule).splitlines()]
    actions = {r: [theirs._Action.from_str(cell) for cell in row] for r, row in enumerate(rows)}
    assert [[str(a) for a in actions[r]] for r in range(4)] == our_order(schedule)
    found = theirs._validate_schedule(actions, 4, 8, 8)
    assert tuple(found[s] for s in range(8)) == schedule.placement.rank_of
    lowered = [line.split(",") for line in to_csv(schedule, messages=True).splitlines()]
    parsed = {r: [theirs._Action.from_str(cell) for cell in row] for r, row in enumerate(lowered)}
    assert [[str(a) for a in parsed[r] if a.is_compute_op] for r in range(4)] == our_order(schedule)


def test_our_messages_are_torchs():
    """The same sends and receives, each on the same rank, as torch's own lowering of the same order."""
    for name, chunks in (("zb_v", 2), ("dualpipev", 2), ("interleaved", 2)):
        schedule = generate(name, 4, 8)
        actions = {
            r: [theirs._Action.from_str(str(a)) for a in row] for r, row in enumerate(schedule.actions)
        }
        lowered = theirs._add_send_recv(actions, lambda s, p=schedule.placement: p.rank_of[s], 4 * chunks)
        for rank, line in enumerate(to_csv(schedule, messages=True).splitlines()):
            assert sorted(line.split(",")) == sorted(str(a) for a in lowered[rank]), (name, rank)
