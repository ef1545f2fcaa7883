"""Profiles the steps that run.profile_at names, and writes what they came to into the run directory."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from hcmegatron.pipeline.configured_schedule import training_schedule
from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import timeout
from hcmegatron.profiling import files
from hcmegatron.profiling.clock import ClockOffset, between, measure_offset
from hcmegatron.profiling.kineto import DAMAGED, Kineto
from hcmegatron.profiling.rank_step import RankRecord, RankStep
from hcmegatron.profiling.recording import rank_step
from hcmegatron.profiling.summary import summarise
from hcmegatron.profiling.table import lines
from hcmegatron.profiling.timeline import joined
from hcmegatron.profiling.trace import HostEvent, to_trace
from hcmegatron.training.observer import End, Observer, Step
from schedules.runtime.gpu import GPU

MOST_HOSTS = 8  # ranks whose host threads and device streams are in the trace of all ranks

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class Profiler(Observer):
    """Around its steps the runtime, the stages and the lanes say when they did what; around the last one torch.profiler
    watches too, which costs time: where there are others, the figures are theirs. No number of the training changes.

    Args:
        run: of one of this project's schedules: Megatron's do not say what they do (config/checks/run.py).
        steps: to profile; None: those of run.profile_at.
    """

    def __init__(self, run: TrainingRun, steps: Sequence[int] | None = None) -> None:
        self.run, self.groups = run, run.stepper.groups
        assert isinstance(run.stepper.schedule, ScheduleRunner)
        self.runner = run.stepper.schedule
        asked = run.config.run.profile_at if steps is None else steps
        self.due = sorted(step for step in set(asked) if step > run.position.step)
        self.steps: list[RankStep] = []
        self.kineto: Kineto | None = None
        self.clock_before: ClockOffset | None = None
        self.usual: list[float] = []  # seconds of steps that are not profiled
        self.took: list[float] = []  # of those that are, with what profiling costs them
        self.group: dist.ProcessGroup | None = None

    @contextmanager
    def around_step(self, step: int) -> Iterator[None]:
        """Watches the step, if it is one of them. Collective."""
        if step not in self.due:
            yield
            return
        if self.clock_before is None:
            self.group = self._of_gloo()
            self.clock_before = measure_offset(self.group)
        mark = GPU.mark if GPU.present() else time.monotonic
        times = NodeTimes(mark)
        with ExitStack() as watching:
            if step == self.due[-1]:
                self.kineto = Kineto()
                watching.enter_context(self.kineto.watching(step))
            self.runner.listen(times)
            watching.callback(self.runner.listen, None)
            self._synchronise()
            began = time.monotonic()
            start = mark()
            yield
            end = mark()
        self._synchronise()
        marks = start, self.runner.finalised, end
        self.steps.append(rank_step(step, self.runner.record, times, marks, began, self._reduced_bytes()))

    def on_step(self, step: Step) -> None:
        """Write the profile after the last of its steps. Collective."""
        if step.number not in self.due:
            self.usual.append(step.seconds)
            return
        self.took.append(step.seconds)
        if step.number == self.due[-1]:
            self._write()

    def on_end(self, end: End) -> None:
        """Of a run that has been stopped before, what there is. Collective, unless it failed."""
        if self.steps and end.error is None:
            self._write()

    def _write(self) -> None:
        offset = between(self.clock_before, measure_offset(self.group))
        own = RankRecord(
            dist.get_rank(),
            tuple(dist.get_process_group_ranks(self.groups.pp)),
            platform.node(),
            offset.seconds,
            offset.uncertainty,
            tuple(self.steps),
        )
        directory = self.run.directory
        host, trouble = self._host_events(directory / files.FOLDER / files.kineto_file(own.rank))
        found: list[Any] | None = [None] * dist.get_world_size() if own.rank == 0 else None
        # what torch.profiler saw of every rank would be too much for one file
        dist.gather_object((own, host if own.rank < MOST_HOSTS else [], trouble), found, group=self.group)
        if found is not None:
            records = [record for record, *_ in found]
            schedule = training_schedule(self.run.config, self.run.stepper.batches.micro_batches)
            timed = len(self.steps) - 1 if self.kineto and len(self.steps) > 1 else None
            summary = summarise(records, schedule, timed=timed)
            summary |= self._cost(timed)
            steps = [joined(records, index) for index in range(len(self.steps))]
            trace = to_trace(steps, schedule, [events for _, events, _ in found])
            self.run.log.say(*lines(summary), *{trouble for *_, trouble in found if trouble})
            try:
                files.write_all(directory, records, summary, trace)
                self.run.log.say(f"profile: {directory / files.FOLDER}")
            except OSError as error:  # a full disk is no reason to lose the run
                self.run.log.say(f"the profile cannot be written: {error}")
        self._forget()

    def _host_events(self, path: Path) -> tuple[list[HostEvent], str]:
        """What torch.profiler saw of this rank, which it writes too; and what went wrong with that, in words."""
        if self.kineto is None:
            return [], ""
        try:
            return self.kineto.write(path), ""
        except DAMAGED as error:
            where = tempfile.gettempdir()
            return [], f"torch.profiler's trace is damaged, as where {where} is full: {error!r}"
        except OSError as error:
            return [], f"torch.profiler's trace cannot be written: {error}"

    def _cost(self, timed: int | None) -> dict[str, float]:
        """What profiling took, beside the steps of the run that were not profiled; nothing where there were none."""
        if not self.usual:
            return {}
        usual, profiled = median(self.usual[-5:]), median(self.took[:timed])
        cost = {"unprofiled_step_ms": 1e3 * usual, "profiled_step_ms": 1e3 * profiled}
        return cost | ({"kineto_step_ms": 1e3 * self.took[-1]} if self.kineto else {})

    def _forget(self) -> None:
        self.steps, self.took, self.due, self.kineto, self.clock_before = [], [], [], None, None
        if self.group is not dist.group.WORLD:
            dist.destroy_process_group(self.group)

    def _of_gloo(self) -> dist.ProcessGroup:
        """A group of all ranks whose messages are of the host."""
        if not GPU.present():
            return dist.group.WORLD
        return dist.new_group(backend="gloo", timeout=timeout(self.run.config.parallel), group_desc="profile")

    def _synchronise(self) -> None:
        if GPU.present():
            GPU.synchronize()

    def _reduced_bytes(self) -> int:
        """Of gradients that this rank sums with others after the pipeline."""
        sums = (self.groups.dp.size() > 1) + (self.runner.replica_sync is not None)
        buffers = (
            buffer for chunk in self.run.chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        )
        return sums * sum(buffer.grad_data.nbytes for buffer in buffers)
