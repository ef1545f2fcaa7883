"""Executes one rank's part of a validated schedule.

Receives are posted ahead (where they cost while they wait, as late as still hides the hops), results are sent as
soon as they exist, and the rank waits only for the message that its next computation needs. An FB whose stages do
not overlap by themselves runs F, sends its output, and only then waits for the gradient: the hop hides behind the
forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from schedules.actions import Kind
from schedules.costs import Costs
from schedules.runtime.p2p import P2PChannels
from schedules.runtime.position import Position
from schedules.runtime.program import ActionPart, Handover, Op, compile_rank, forward_only
from schedules.runtime.record import Mark, Record
from schedules.runtime.stage import OverlappingStage, Stage
from schedules.runtime.transport import Transport
from schedules.runtime.watchdog import Watchdog
from schedules.schedule import Message, Schedule
from schedules.validate import validate

_Started = tuple[float, Mark]  # host seconds waited before, and when it began


class Runtime:
    """One rank of a pipeline, to be stepped over and over.

    ``stages`` holds the rank's stages by stage id. ``shape(message)`` gives the shape of an activation, or of
    the gradient of one; it may differ between micro-batches and steps, as long as both ends agree. All have
    the same ``dtype``, on ``device``. ``evaluate``: only the forwards of the schedule are run. ``lockstep``:
    an FB waits for both its messages before it starts and sends both results when it is over; there to be
    compared with. ``watchdog`` is told the rank's position, and that a step has failed. ``costs``: by which it is
    worked out how late receives may be posted, where the transport's cost while they wait.

    ValueError for an invalid schedule (InvalidSchedule) or stages that are not the rank's.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        stages: Mapping[int, Stage],
        transport: Transport,
        *,
        shape: Callable[[Message], Sequence[int]],
        dtype: torch.dtype,
        device: torch.device,
        evaluate: bool = False,
        lockstep: bool = False,
        watchdog: Watchdog | None = None,
        costs: Costs | None = None,
    ) -> None:
        validate(schedule)
        expected = schedule.placement.stages_of(rank)
        if sorted(stages) != list(expected):
            raise ValueError(
                f"rank {rank} holds stages {list(expected)} under {schedule.name}; "
                f"the table given has {sorted(stages)}"
            )
        executed = forward_only(schedule) if evaluate else schedule
        self.program = compile_rank(
            executed, rank, (costs or Costs()) if transport.receives_occupy_device else None
        )
        name = f"{schedule.name}, forward only" if evaluate else schedule.name
        self.position = Position(name, rank, self.program.ops)
        self._stages, self._transport, self._shape = dict(stages), transport, shape
        self._device, self._lockstep, self._watchdog = device, lockstep, watchdog
        self._overlapping = {n: stage for n, stage in stages.items() if isinstance(stage, OverlappingStage)}
        self._pool = transport.buffers(dtype, device)
        self._broken = False

    def step(self, mark: Callable[[], Mark] | None = None) -> Record:
        """Runs the schedule once. Returns when all of it is done and sent (on CUDA: enqueued). ``mark`` says the time
        of actions and messages; without it, on CUDA, those of messages are the host's.

        PipelineError if a message is lost; what a stage raises passes through, with the position as a note.
        After an exception the ranks are out of step with each other: another call raises RuntimeError.
        """
        if self._broken:
            raise RuntimeError(f"{self.position}: an earlier step failed, so the ranks no longer agree")
        self._broken = True
        if self._watchdog is not None:
            self._watchdog.watch(self.position)
        self.position.begin_step()
        try:
            record = self._execute(mark)
        except Exception as error:
            error.add_note(f"at {self.position}")
            if self._watchdog is not None:
                self._watchdog.trip(f"rank {self.program.rank}: {type(error).__name__}: {error}")
                error.add_note(f"positions and stacks of all ranks: {self._watchdog.directory}")
            raise
        self.position.end_step()
        self._broken = False
        return record

    def _execute(self, mark: Callable[[], Mark] | None) -> Record:
        program, position = self.program, self.position
        record = Record(program, self._device)
        record.mark = mark or record.mark
        p2p = P2PChannels(self._transport, self._pool, self._shape, program, position, mark or time.monotonic)
        self._record, self._p2p = record, p2p
        self._handed: dict[Handover, Tensor] = {}
        posts = program.posts
        for index, op in enumerate(program.ops):
            position.index, position.since = index, time.monotonic()
            if posts is not None:
                p2p.post(posts[index])
            if len(op.parts) == 1:
                self._run(op.parts[0])
            elif self._lockstep:
                self._run_in_lockstep(op)
            elif (stage := self._overlapping.get(op.action.stage)) is not None:
                self._run_overlapped(op, stage)
            else:
                for part in op.parts:
                    self._run(part)
        position.index, position.since = len(program.ops), time.monotonic()
        p2p.finish()
        record.finish(p2p.waited, p2p.most_buffers)
        record.sends, record.waits = p2p.sends, p2p.waits
        return record

    def _run(self, part: ActionPart) -> None:
        p2p, mark = self._p2p, self._record.mark
        value = self._take(part)
        # as _start and _end do, without a call
        waited, p2p.waited = p2p.waited, 0.0
        start = mark()
        result = self._compute(part, value)
        self._record.add((self.position.index, part.action, waited, start, mark()))
        self._give(part, result)
        if part.is_last_use:
            p2p.release(part.action)

    def _run_in_lockstep(self, op: Op) -> None:
        values = [self._take(part) for part in op.parts]
        results = []
        for part, value in zip(op.parts, values, strict=True):
            started = self._start()
            results.append(self._compute(part, value))
            self._end(part, started)
        for part, result in zip(op.parts, results, strict=True):
            self._give(part, result)
            if part.is_last_use:
                self._p2p.release(part.action)

    def _run_overlapped(self, op: Op, stage: OverlappingStage) -> None:
        forward, backward = op.parts
        calls: list[str] = []
        started: dict[ActionPart, _Started] = {}

        def wait_grad() -> Tensor | None:
            calls.append("wait_grad")
            value = self._take(backward)
            started[backward] = self._start()
            return value

        def send_output(output: Tensor | None) -> None:
            calls.append("send_output")
            self._end(forward, started[forward])
            self._give(forward, output)

        def send_input_grad(gradient: Tensor | None) -> None:
            calls.append("send_input_grad")
            self._give(backward, gradient)

        value = self._take(forward)
        started[forward] = self._start()
        stage.forward_backward(
            forward.action.microbatch,
            value,
            self._stages[backward.action.stage],
            backward.action.microbatch,
            wait_grad,
            send_output,
            send_input_grad,
        )
        if sorted(calls) != ["send_input_grad", "send_output", "wait_grad"]:
            raise RuntimeError(
                f"{op.action}: forward_backward of stage {forward.action.stage} called {calls}; "
                "it has to call wait_grad, send_output and send_input_grad once each"
            )
        self._end(backward, started[backward])
        for part in op.parts:
            if part.is_last_use:
                self._p2p.release(part.action)

    def _compute(self, part: ActionPart, value: Tensor | None) -> Tensor | None:
        kind, number, microbatch, _ = part.action
        stage = self._stages[number]
        if kind is Kind.F:
            return stage.forward(microbatch, value)
        if kind is Kind.B:
            return stage.backward(microbatch, value)
        if kind is Kind.I:
            return stage.backward_input(microbatch, value)
        stage.backward_weight(microbatch)
        return None

    def _take(self, part: ActionPart) -> Tensor | None:
        """The part's input: a message, a value from another stage of this rank, or nothing."""
        if part.take is not None:
            return self._handed.pop(part.take)
        return None if part.receive is None else self._p2p.receive(part.receive)

    def _give(self, part: ActionPart, value: Tensor | None) -> None:
        """Where the part's result goes."""
        if part.send is None and part.give is None:
            return
        if value is None:
            raise ValueError(f"{part.action} returned nothing, and another stage needs its result")
        if part.send is not None:
            self._p2p.send(part.send, value)
        elif part.give is not None:
            self._handed[part.give] = self._pool.own(value.detach() if value.requires_grad else value)

    def _start(self) -> _Started:
        waited, self._p2p.waited = self._p2p.waited, 0.0
        return waited, self._record.mark()

    def _end(self, part: ActionPart, started: _Started) -> None:
        record = self._record
        record.add((self.position.index, part.action, *started, record.mark()))
