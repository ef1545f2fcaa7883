"""What one rank did in one step, as plain data: times in seconds on the rank's own clock. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

FORMAT = 1


class Ran(NamedTuple):
    """A plain action (a pair has two) of the rank's list at `position`."""

    position: int
    action: str
    start: float
    end: float


class Sent(NamedTuple):
    """A message, as the schedule writes its sending (0SEND_F3), between two ranks of the pipeline."""

    message: str
    source: int
    target: int
    at: float
    bytes: int


class Waited(NamedTuple):
    """For a message: for its coming, or, where the rank itself is its source, for its leaving."""

    message: str
    source: int
    target: int
    start: float
    end: float


class NodeRan(NamedTuple):
    """A node's phase (F, I or W; B: I and W at once) on a lane (model/nodes.py); bytes: what a forward made."""

    phase: str
    node: str
    lane: str
    start: float
    end: float
    bytes: int


@dataclass(frozen=True)
class RankStep:
    """From `begin` to `end`: gradients are cleared, `pipeline` (start, end) runs the schedule, then they are reduced
    until `finalised`, then weights are updated.

    Attributes:
        reduced_bytes: of gradients that ranks sum.
    """

    step: int
    begin: float
    pipeline: tuple[float, float]
    finalised: float
    end: float
    actions: tuple[Ran, ...]
    sends: tuple[Sent, ...]
    waits: tuple[Waited, ...]
    nodes: tuple[NodeRan, ...] = ()
    reduced_bytes: int = 0

    def shifted(self, seconds: float) -> RankStep:
        """The same on another clock, which is `seconds` ahead."""
        return replace(
            self,
            begin=self.begin + seconds,
            pipeline=(self.pipeline[0] + seconds, self.pipeline[1] + seconds),
            finalised=self.finalised + seconds,
            end=self.end + seconds,
            actions=tuple(a._replace(start=a.start + seconds, end=a.end + seconds) for a in self.actions),
            sends=tuple(s._replace(at=s.at + seconds) for s in self.sends),
            waits=tuple(w._replace(start=w.start + seconds, end=w.end + seconds) for w in self.waits),
            nodes=tuple(n._replace(start=n.start + seconds, end=n.end + seconds) for n in self.nodes),
        )


def makers(message: str) -> tuple[str, ...]:
    """The actions that may have made a message: 0SEND_F3 is of 0F3, 1SEND_B2 of 1B2 or 1I2."""
    stage, _, payload = message.partition("SEND_")
    kinds = ("F",) if payload[0] == "F" else ("B", "I")
    return tuple(f"{stage}{kind}{payload[1:]}" for kind in kinds)


_ROWS = {"actions": Ran, "sends": Sent, "waits": Waited, "nodes": NodeRan}


@dataclass(frozen=True)
class RankRecord:
    """A rank's profiled steps.

    Attributes:
        pipeline: the global ranks of its pipeline, in order.
        offset: what has to be added to its times to have them on rank 0's clock, to within `uncertainty`.
    """

    rank: int
    pipeline: tuple[int, ...]
    host: str
    offset: float = 0.0
    uncertainty: float = 0.0
    steps: tuple[RankStep, ...] = field(default_factory=tuple)

    @property
    def pipeline_rank(self) -> int:
        return self.pipeline.index(self.rank)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads; rows are lists in the order of their fields."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        steps = [{entry.name: getattr(step, entry.name) for entry in fields(step)} for step in self.steps]
        rows = {name: list(row._fields) for name, row in _ROWS.items()}
        return {"format": FORMAT, **own, "rows": rows, "steps": steps}


def from_json(found: Mapping[str, Any]) -> RankRecord:
    """A record as it was written.

    Raises:
        ValueError: it is of another format.
    """
    if found.get("format") != FORMAT:
        raise ValueError(f"format {found.get('format')!r} of a rank's profile; this version reads {FORMAT}")
    names = {entry.name for entry in fields(RankRecord)} - {"steps", "pipeline"}
    steps = []
    for values in found["steps"]:
        rows = {name: tuple(row(*entry) for entry in values[name]) for name, row in _ROWS.items()}
        steps.append(RankStep(**{**values, "pipeline": tuple(values["pipeline"]), **rows}))
    own = {name: found[name] for name in names}
    return RankRecord(**own, pipeline=tuple(found["pipeline"]), steps=tuple(steps))
