"""How long a rank computes in a step, apart from its waits for others; and for whom it waits.

Ours say it themselves: what the runtime has recorded. Megatron's without a pipeline compute until they finalise
gradients. Its pipelines do not say when they wait, so that nothing is known of them (config/checks/run.py refuses).
What ranks of a tensor- or expert-parallel group wait for each other inside of a layer is in the time of all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from hcmegatron.pipeline.runner import ScheduleRunner
from schedules.runtime.gpu import GPU
from schedules.runtime.record import Mark, Record


class OwnTime(NamedTuple):
    """Of one step on one rank.

    Attributes:
        seconds: of its forwards and backwards, with their waits for data.
        waits: seconds by rank of the pipeline that it waited for.
    """

    seconds: float
    waits: dict[int, float]


class OwnTimes:
    """Of the steps of a schedule, as long as `schedule` is called in its place.

    Args:
        schedule: a forward_backward_func; the runner of ours is left as it is.
    """

    def __init__(self, schedule: Callable, chunks: list[nn.Module]) -> None:
        self.schedule = schedule
        self._mark: Callable[[], Mark] = GPU.mark if GPU.present() else time.monotonic
        if not isinstance(schedule, ScheduleRunner):
            self.schedule = partial(self._timed, schedule)
            for config in {id(chunk.config): chunk.config for chunk in chunks}.values():
                config.finalize_model_grads_func = partial(self._finalise, config.finalize_model_grads_func)

    def last(self) -> OwnTime:
        """Of the step that has ended. On a GPU the host waits for it."""
        if isinstance(self.schedule, ScheduleRunner):
            return of_record(self.schedule.record)
        if not GPU.present():
            return OwnTime(self._computed - self._begun, {})
        GPU.synchronize()
        return OwnTime(self._begun.elapsed_time(self._computed) * 1e-3, {})

    def _timed(self, schedule: Callable, **arguments: Any) -> Any:
        self._begun = self._mark()
        return schedule(**arguments)

    def _finalise(self, usual: Callable, *arguments: Any, **options: Any) -> Any:
        self._computed = self._mark()
        return usual(*arguments, **options)


def of_record(record: Record) -> OwnTime:
    """Of what the runtime has executed.

    On a GPU, where the stream waits and not the host, a wait is the gap before an action that needs a message.
    """
    events = record.events()
    seconds, waits = 0.0, defaultdict[int, float](float)
    end = min((event.start for event in events), default=0.0)
    for event in sorted(events, key=lambda event: event.start):
        source = record.source(event)
        if source is not None:
            waits[source] += max(event.waited, event.start - end if GPU.present() else 0.0)
        # the two parts of a pair may overlap
        seconds += max(0.0, event.end - max(event.start, end))
        end = max(end, event.end)
    return OwnTime(seconds, dict(waits))
