"""A kind of connection and a schedule that nobody needs, each a descriptor and what it describes.

Importing this before configuration is imported does what a line in each of the two registries does:
`pytest -p tests.descriptors.throw_away ...` runs tests with them.
"""

from __future__ import annotations

import dataclasses
import sys

from hcmegatron.connections import kinds
from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Parameter, Range, setting
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.shared_settings import Trained
from schedules import generators
from schedules.actions import F, I, W
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import one_per_rank
from schedules.schedule import Schedule

assert "hcmegatron.config" not in sys.modules, (
    "configuration is derived from the registries when it is imported"
)


@dataclasses.dataclass
class Settings(Trained, Streams):
    """Of the kind, with one that no other kind has."""

    leak: float = setting(0.5, Range("from 0 to 1", lambda v: 0 <= v <= 1), tries=(0.5, 0.25))


KIND = ConnectionDescriptor(
    name="throwaway",
    title="a normed read by static gates, an identity carry",
    settings=Settings,
    module="tests.descriptors.throw_away_module:ThrowAway",
    parameters=lambda conn, C: {
        "gate": Parameter((conn.n,), "static"),
        "W": Parameter((conn.n, C), "projection"),
        "gamma": Parameter((C,), "norm"),
    },
    flops=lambda conn, C: 4 * conn.n * C,
    saved_bytes=lambda conn, C, itemsize: 3 * conn.n * C * itemsize,
    streams=lambda conn: conn.n,
    carry="identity",
    normalises=True,
    kernels=False,
    starts="near",
)


def last_first(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then backwards from the last micro-batch to the first, split."""
    LAST_FIRST.check(ranks, microbatches)
    forwards = [[F(r, m) for m in range(microbatches)] for r in range(ranks)]
    backwards = [[kind(r, m) for m in reversed(range(microbatches)) for kind in (I, W)] for r in range(ranks)]
    actions = tuple(tuple(f + b) for f, b in zip(forwards, backwards, strict=True))
    return Schedule("last_first", one_per_rank(ranks), microbatches, actions, (microbatches,) * ranks)


LAST_FIRST = ScheduleDescriptor(
    "last_first",
    last_first,
    one_per_rank,
    splits=True,
    microbatches_multiple=lambda P: 2,
    microbatches_why="it likes pairs",
)

kinds.KINDS[KIND.name] = KIND
generators.SCHEDULES[LAST_FIRST.name] = LAST_FIRST
generators.GENERATORS[LAST_FIRST.name] = LAST_FIRST.generate
