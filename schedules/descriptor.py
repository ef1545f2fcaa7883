"""What there is to know of a kind of schedule without generating one: placement, sizes that it takes, what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from schedules.placement import Placement
from schedules.schedule import Schedule


class Misfit(NamedTuple):
    """A size that a schedule cannot take.

    Attributes:
        smallest: the smallest above it that works, with the other size as it is.
        multiple: what it has to be a multiple of; 1 where it is only too small.
        why: the reason, in words; empty where it is only too small.
    """

    what: Literal["ranks", "microbatches"]
    value: int
    smallest: int
    multiple: int
    why: str


@dataclass(frozen=True)
class ScheduleDescriptor:
    """A kind of schedule. P ranks, M micro-batches of a step, counted over all paths.

    Attributes:
        name: what configuration and `generate` call it.
        generate: (ranks, microbatches) -> Schedule; with `chunks` too where the stages a rank are chosen.
        place: ranks, and `chunks` where they are chosen -> where its stages live.
        chosen: whether the stages a rank are a setting (`chunks`).
        splits: whether backwards are split into I and W.
        pairs: whether it overlaps forwards with backwards (FB).
        ranks_multiple, ranks_why: P is a multiple of it, and why.
        microbatches_least: the smallest M on P ranks.
        microbatches_multiple, microbatches_why: M is a multiple of it on P ranks, and why.
    """

    name: str
    generate: Callable[..., Schedule]
    place: Callable[..., Placement]
    chosen: bool = False
    splits: bool = False
    pairs: bool = False
    ranks_multiple: int = 1
    ranks_why: str = ""
    microbatches_least: Callable[[int], int] = lambda P: 1
    microbatches_multiple: Callable[[int], int] = lambda P: 1
    microbatches_why: str = ""

    def placement(self, ranks: int, chunks: int | None = None) -> Placement:
        """Where the stages live. chunks: stages a rank, where they are chosen."""
        return self.place(ranks, chunks) if self.chosen and chunks else self.place(ranks)

    def schedule(self, ranks: int, microbatches: int, chunks: int | None = None) -> Schedule:
        """The schedule of these sizes. ValueError where it cannot take them."""
        return self.generate(ranks, microbatches, *([chunks] if self.chosen and chunks else []))

    def misfit(self, ranks: int, microbatches: int | None = None) -> Misfit | None:
        """What is wrong with the sizes, if anything; without `microbatches`, with the ranks alone."""
        found = _misfit("ranks", ranks, self.ranks_multiple, self.ranks_multiple, self.ranks_why)
        if found is None and microbatches is not None:
            least, multiple = self.microbatches_least(ranks), self.microbatches_multiple(ranks)
            found = _misfit("microbatches", microbatches, least, multiple, self.microbatches_why)
        return found

    def check(self, ranks: int, microbatches: int) -> None:
        """ValueError for sizes that it cannot take, in one line with the smallest that works."""
        if found := self.misfit(ranks, microbatches):
            what, above = f" with ranks={ranks}" if found.what == "microbatches" else "", ""
            if found.multiple > 1:
                unlike = "odd" if found.multiple == 2 else f"no multiple of {found.multiple}"
                what, above = f" is {unlike}: {found.why}", " above it"
            raise ValueError(
                f"{self.name}: {found.what}={found.value}{what}; "
                f"the smallest{above} that works is {found.smallest}"
            )


def _misfit(
    what: Literal["ranks", "microbatches"], value: int, least: int, multiple: int, why: str
) -> Misfit | None:
    smallest = -(-max(value, least) // multiple) * multiple
    if smallest == value:
        return None
    if value < least:
        return Misfit(what, value, smallest, 1, "")
    return Misfit(what, value, smallest, multiple, why)
