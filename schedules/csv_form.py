"""Schedules as CSV, in the grammar of torch.distributed.pipelining: one line per rank, one cell per action.

The file does not hold the placement; it follows from which rank runs which stage. Empty cells, and the cells
of a lowered file that say what to send and receive, are read over: messages are derived anew. Bidirectional
DualPipe keeps to the grammar, with an id for each copy of a stage (see ``placement``), but torch's runtime
cannot run it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from schedules.actions import Action, Kind, parse_action
from schedules.placement import Placement
from schedules.schedule import Schedule, lower

_MESSAGE = re.compile(r"[0-9]+(SEND|RECV)_[FB][0-9]+")


def to_csv(schedule: Schedule, messages: bool = False) -> str:
    """The schedule as text; with ``messages`` also ``1RECV_F3`` before an action and ``1SEND_F3`` after
    it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for steps in lower(schedule):
        cells = []
        for action, receives, sends in steps:
            if messages:
                cells += [message.receive_text for message in receives]
            cells.append(str(action))
            if messages:
                cells += [message.send_text for message in sends]
        writer.writerow(cells)
    return buffer.getvalue()


def from_csv(text: str, name: str = "csv") -> Schedule:
    """The schedule that the text holds, not yet validated. ValueError names the line and the cell."""
    lists: list[tuple[Action, ...]] = []
    for number, row in enumerate(_rows(text), start=1):
        actions = []
        for column, cell in enumerate(row, start=1):
            cell = cell.strip()
            if not cell or _MESSAGE.fullmatch(cell):
                continue
            try:
                actions.append(parse_action(cell))
            except ValueError as error:
                raise ValueError(f"line {number}, cell {column}: {error}") from None
        lists.append(tuple(actions))
    while lists and not lists[-1]:
        lists.pop()
    if not lists:
        raise ValueError("line 1: no actions in the file")
    placement, microbatches = _placement(lists)
    return Schedule(name, placement, microbatches, tuple(lists))


def _rows(text: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _placement(lists: list[tuple[Action, ...]]) -> tuple[Placement, int]:
    rank_of: dict[int, int] = {}
    seen: dict[int, set[int]] = {}
    for rank, actions in enumerate(lists):
        for action in actions:
            for part in action.parts:
                owner = rank_of.setdefault(part.stage, rank)
                if owner != rank:
                    raise ValueError(
                        f"line {rank + 1}: {action}: stage {part.stage} already is on line {owner + 1}; "
                        "a stage lives on one rank, copies have ids of their own"
                    )
                if part.kind is Kind.F:
                    seen.setdefault(part.stage, set()).add(part.microbatch)
    stages = max(rank_of) + 1
    if stages > len(rank_of):
        missing = next(stage for stage, found in enumerate(sorted(rank_of)) if stage != found)
        raise ValueError(f"no line has stage {missing}, yet there is a stage {stages - 1}")
    every = set().union(*seen.values())
    microbatches = max(every, default=0) + 1
    if microbatches > max(1, len(every)):
        missing = next(m for m, found in enumerate(sorted(every)) if m != found)
        raise ValueError(
            f"no line has a forward of micro-batch {missing}, yet there is one of {microbatches - 1}"
        )
    ranks = tuple(rank_of[stage] for stage in range(stages))
    half = stages // 2
    # Two paths: the first and the last stage id never see the same micro-batch.
    first, last = seen.get(0, set()), seen.get(stages - 1, set())
    if stages > 1 and stages % 2 == 0 and first and last and not first & last:
        return Placement(len(lists), (ranks[:half], ranks[half:])), microbatches
    return Placement(len(lists), (ranks,)), microbatches
