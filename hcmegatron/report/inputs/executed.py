"""The schedule as a profiled step ran it: profile/rank-*.json, every rank's actions with their times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.report.inputs.json_lines import read_json
from schedules.actions import Kind
from schedules.costs import Costs
from schedules.schedule import Schedule
from schedules.timeline import Simulation, Timed

FORMAT = 1


class _Ran(NamedTuple):
    """An action of a pipeline rank's list, in milliseconds on the clock that all ranks share."""

    position: int
    start: float
    end: float


def executed(run: Path, schedule: Schedule, step: int | None) -> Simulation | None:
    """The step as a simulation of `schedule` in milliseconds, for drawing; None where it is not on record, or is of
    another schedule.

    Args:
        step: of training; None: the last one on record.
    """
    ran: dict[int, list[_Ran]] = {}
    try:
        for file in sorted((run / "profile").glob("rank-*.json")):
            record = read_json(file) or {}
            if record.get("format") == FORMAT and record["rank"] in record["pipeline"]:
                rank = record["pipeline"].index(record["rank"])
                ran.setdefault(rank, list(_actions(record, step)))  # of several pipelines, the first
        return _simulation(schedule, ran)
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _actions(record: Mapping[str, Any], step: int | None) -> Iterator[_Ran]:
    """Of one rank. ValueError where it has not recorded the step."""
    names = record["rows"]["actions"]
    place = [names.index(name) for name in ("position", "start", "end")]
    steps = [each for each in record["steps"] if step is None or each["step"] == step]
    if not steps:
        raise ValueError(f"no step {step}")
    for row in steps[-1]["actions"]:
        position, start, end = (row[i] for i in place)
        yield _Ran(position, 1e3 * (start + record["offset"]), 1e3 * (end + record["offset"]))


def _simulation(schedule: Schedule, ran: Mapping[int, list[_Ran]]) -> Simulation | None:
    if not ran or set(ran) != set(range(schedule.ranks)):
        return None
    begin = min(each.start for actions in ran.values() for each in actions)
    timeline = []
    for rank, actions in enumerate(schedule.actions):
        at: defaultdict[int, list[_Ran]] = defaultdict(list)
        for each in sorted(ran[rank], key=lambda each: (each.position, each.start)):
            at[each.position].append(each._replace(start=each.start - begin, end=each.end - begin))
        if set(at) != set(range(len(actions))):
            return None
        timed = []
        for position, action in enumerate(actions):
            # Of a pair the forward begins first: its backward joins it.
            first, last = at[position][0], at[position][-1]
            pair = action.kind is Kind.FB and len(at[position]) == 2
            start, end = first.start, max(each.end for each in at[position])
            forward_end, backward_start = (first.end, last.start) if pair else (end, start)
            timed.append(
                Timed(
                    action=action,
                    start=start,
                    forward_end=forward_end,
                    backward_start=backward_start,
                    end=end,
                    busy=end - start,
                    forward_cause=None,
                    backward_cause=None,
                )
            )
        timeline.append(tuple(timed))
    return Simulation(schedule, Costs(), tuple(timeline), ())
