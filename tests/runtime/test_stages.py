"""What stages may do, and what a mistake in one is answered with."""

import re
import time

import pytest
import torch

from schedules import Kind, generate
from schedules.runtime import InProcessWorld, OverlappingStage, Runtime, step_all
from tests.runtime.equality import check
from tests.runtime.stages import DTYPE, BlockStage, losses, shape_for, stages_of
from tests.runtime.workers import CPU, result, runtime

RANKS, LENGTHS = 2, [4, 7, 3, 5, 6]
SCHEDULE = generate("dualpipev", RANKS, len(LENGTHS))


class Overlapping(BlockStage):
    """Joins B before F's output has left."""

    def forward_backward(
        self,
        microbatch,
        input,
        backward_stage,
        backward_microbatch,
        wait_grad,
        send_output,
        send_input_grad,
    ):
        output = self.forward(microbatch, input)
        grad = wait_grad()
        send_output(output)
        send_input_grad(backward_stage.backward(backward_microbatch, grad))


class Forgetful(Overlapping):
    def forward_backward(self, microbatch, input, *rest):
        super().forward_backward(microbatch, input, *rest[:-1], lambda gradient: None)


class Identity(BlockStage):
    """Passes its input and its gradient on as they are. The first one is slow to fetch gradients, so that
    those sent from a receive buffer would have been overwritten by then."""

    def forward(self, microbatch, input):
        if self.first or self.last:
            return super().forward(microbatch, input)
        return input

    def backward(self, microbatch, output_grad):
        if self.first:
            time.sleep(0.01)
        if self.first or self.last:
            return super().backward(microbatch, output_grad)
        return output_grad


def build(kind, world, schedule=SCHEDULE, **options):
    placement = schedule.placement
    stages = [
        {number: kind(number, placement.stages, LENGTHS) for number in placement.stages_of(rank)}
        for rank in range(schedule.ranks)
    ]
    runtimes = [
        runtime(schedule, rank, stages[rank], world.transport(rank), LENGTHS, **options)
        for rank in range(schedule.ranks)
    ]
    return stages, runtimes


def run(kind, tmp_path, schedule=SCHEDULE, **options):
    world = InProcessWorld(schedule.ranks)
    stages, runtimes = build(kind, world, schedule, **options)
    records = step_all(world, runtimes, limit=20, directory=tmp_path)
    return [result(*own) for own in zip(stages, runtimes, records, strict=True)]


def test_overlapping_stages_run_both_halves(tmp_path):
    assert isinstance(Overlapping(0, 1, LENGTHS), OverlappingStage)
    assert not isinstance(BlockStage(0, 1, LENGTHS), OverlappingStage)
    check(SCHEDULE, LENGTHS, run(Overlapping, tmp_path))


def test_lockstep_gives_the_same(tmp_path):
    check(SCHEDULE, LENGTHS, run(BlockStage, tmp_path, lockstep=True))


def test_a_half_that_never_sends_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="send_input_grad once each"):
        run(Forgetful, tmp_path)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb_v"])
def test_what_passes_through_is_not_overwritten(name, tmp_path):
    """The ends of the path compute, all between hand over what they got; values have to survive reuse."""
    schedule = generate(name, 4, len(LENGTHS))
    results = run(Identity, tmp_path, schedule)
    last = schedule.placement.stages - 1
    ends = [BlockStage(0, last + 1, LENGTHS), BlockStage(last, last + 1, LENGTHS)]
    for microbatch in range(len(LENGTHS)):
        ends[1].forward(microbatch, ends[0].forward(microbatch, None))
        ends[0].backward(microbatch, ends[1].backward(microbatch, None))
    found = {m: loss for own in results for m, loss in own.losses.items()}
    assert found == pytest.approx(losses({last: ends[1]}), rel=1e-13)
    (grads,) = [grads for own in results for number, grads in own.gradients if number == 0]
    for grad, weight in zip(grads, ends[0].weights, strict=True):
        torch.testing.assert_close(grad, weight.grad, rtol=1e-12, atol=1e-14)


class Silent(BlockStage):
    def forward(self, microbatch, input):
        super().forward(microbatch, input)


class Narrow(BlockStage):
    def forward(self, microbatch, input):
        output = super().forward(microbatch, input)
        return output if output is None else output[:, :-1]


class Single(BlockStage):
    def forward(self, microbatch, input):
        output = super().forward(microbatch, input)
        return output if output is None else output.float()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Silent, "0F0 returned nothing, and another stage needs its result"),
        (Narrow, "is (4, 5) of torch.float64; the receiver expects (4, 6) of torch.float64"),
        (Single, "is (4, 6) of torch.float32; the receiver expects (4, 6) of torch.float64"),
    ],
)
def test_a_wrong_result_is_refused_where_it_is_produced(kind, text, tmp_path):
    with pytest.raises(ValueError, match=re.escape(text)):
        run(kind, tmp_path)


def test_stages_have_to_be_the_ranks_own():
    stages = {0: BlockStage(0, 4, LENGTHS)}
    with pytest.raises(ValueError, match=re.escape("rank 0 holds stages [0, 3] under dualpipev")):
        runtime(SCHEDULE, 0, stages, InProcessWorld(2).transport(0), LENGTHS)


def test_only_a_valid_schedule_runs():
    broken = type(SCHEDULE)(
        "broken", SCHEDULE.placement, SCHEDULE.microbatches, (SCHEDULE.actions[0][:-1], SCHEDULE.actions[1])
    )
    stages = {number: BlockStage(number, 4, LENGTHS) for number in (0, 3)}
    with pytest.raises(ValueError, match="schedule broken"):
        Runtime(
            broken,
            0,
            stages,
            InProcessWorld(2).transport(0),
            shape=shape_for(LENGTHS),
            dtype=DTYPE,
            device=CPU,
        )


def test_after_a_failure_the_runtime_refuses_to_go_on(tmp_path):
    world = InProcessWorld(RANKS)
    _, runtimes = build(Silent, world)
    with pytest.raises(ValueError, match="returned nothing"):
        step_all(world, runtimes, limit=20, directory=tmp_path)
    with pytest.raises(RuntimeError, match="an earlier step failed"):
        runtimes[0].step()


class Telling(InProcessWorld):
    """Writes down what rank 1 asks of its transport, in order."""

    def __init__(self, ranks):
        super().__init__(ranks)
        self.calls = []

    def _post(self, message, letter):
        if message.source_rank == 1:
            self.calls.append(message.send_text)
        super()._post(message, letter)

    def _collect(self, message):
        if message.target_rank == 1:
            self.calls.append(message.receive_text)
        return super()._collect(message)


@pytest.mark.parametrize("lockstep", [False, True])
def test_the_forward_of_a_pair_is_sent_before_its_gradient_is_waited_for(lockstep, tmp_path):
    """Except in lockstep. The middle rank of three receives both inputs and sends both outputs."""
    lengths = [4] * 7
    schedule = generate("dualpipev", 3, len(lengths))
    world = Telling(3)
    runtimes = [
        runtime(
            schedule,
            rank,
            stages_of(schedule, rank, lengths),
            world.transport(rank),
            lengths,
            lockstep=lockstep,
        )
        for rank in range(3)
    ]
    step_all(world, runtimes, limit=20, directory=tmp_path)
    pairs = [action.parts for action in schedule.actions[1] if action.kind is Kind.FB]
    assert len(pairs) == 7
    for (_, f, i, _), (_, b, j, _) in pairs:
        start = world.calls.index(f"{f}RECV_F{i}")
        early = [f"{f}RECV_F{i}", f"{f}SEND_F{i}", f"{b}RECV_B{j}", f"{b}SEND_B{j}"]
        late = [early[0], early[2], early[1], early[3]]
        assert world.calls[start : start + 4] == (late if lockstep else early)
