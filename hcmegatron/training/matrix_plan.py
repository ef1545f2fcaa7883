"""Which rank orthogonalises which matrix, and what has to travel for it. Pure, no torch.

Every rank's optimizer holds boxes of matrices: whole ones, tensor-parallel parts, or what a flat shard has of them.
Every matrix gets one owner, to whom its boxes are sent and who sends back what they become.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A matrix of the whole network: its checkpoint key, and indices of what is stacked under it (the expert)."""

    key: str
    leading: tuple[int, ...]


class Box(NamedTuple):
    """Rows and columns of a matrix."""

    place: Place
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.size)


class Round(NamedTuple):
    """Matrices that are whole at the same time.

    Attributes:
        owners: of every matrix the rank that orthogonalises it.
        sources: of every box the rank that sends it to the owner: the owner itself where it has it.
    """

    owners: Mapping[Place, int]
    sources: Mapping[Box, int]


class Exchange(NamedTuple):
    """What a rank sends to every rank of a group, and what it receives from each; the same order on both sides.

    Attributes:
        travels: whether any rank sends another anything.
    """

    sent: list[list[Box]]
    received: list[list[Box]]
    travels: bool


def gathering(each: Round, rank: int, ranks: int) -> Exchange:
    """Boxes on the way to the owners, as `rank` sees it."""
    sent: list[list[Box]] = [[] for _ in range(ranks)]
    received: list[list[Box]] = [[] for _ in range(ranks)]
    for box, source in each.sources.items():
        owner = each.owners[box.place]
        if source == rank:
            sent[owner].append(box)
        if owner == rank:
            received[source].append(box)
    return Exchange(sent, received, any(each.owners[box.place] != rank for box, rank in each.sources.items()))


def returning(each: Round, held: Sequence[Sequence[Box]], rank: int) -> Exchange:
    """Boxes on the way from the owners to all ranks that hold them, as `rank` sees it. held: as for `rounds`."""
    here = [sorted(box for box in boxes if box.place in each.owners) for boxes in held]
    sent = [[box for box in boxes if each.owners[box.place] == rank] for boxes in here]
    received = [[box for box in here[rank] if each.owners[box.place] == owner] for owner in range(len(held))]
    travels = any(each.owners[box.place] != holder for holder, boxes in enumerate(here) for box in boxes)
    return Exchange(sent, received, travels)


def owners_of(
    costs: Mapping[Place, float], holders: Mapping[Place, Sequence[int]], ranks: int
) -> dict[Place, int]:
    """The rank of every matrix, the dearest first: one that holds a part of it, as long as that leaves it within its
    fair share, and otherwise whoever has least to do."""
    fair, load = sum(costs.values()) / ranks, [0.0] * ranks
    found: dict[Place, int] = {}
    for place in sorted(costs, key=lambda place: (-costs[place], place)):
        near = min(holders[place], key=lambda rank: (load[rank], rank))
        least = min(range(ranks), key=lambda rank: (load[rank], rank not in holders[place], rank))
        chosen = near if load[near] + costs[place] <= fair else least
        found[place] = chosen
        load[chosen] += costs[place]
    return found


def rounds(held: Sequence[Sequence[Box]], costs: Mapping[Place, float], most: int) -> Iterator[Round]:
    """All matrices, in rounds of which ranks hold `most` numbers on average: as many come back to them.

    Args:
        held: by rank, the boxes that its optimizer holds. Ranks that hold the same elements hold the same boxes.
        costs: of orthogonalising each.
    """
    holders: dict[Place, list[int]] = defaultdict(list)
    sources: dict[Place, dict[Box, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, boxes in enumerate(held):
        for box in boxes:
            sources[box.place][box].append(rank)
            if rank not in holders[box.place][-1:]:
                holders[box.place].append(rank)
    current: list[Place] = []
    numbers = 0
    for place in sorted(sources):
        size = sum(box.numbers * len(having) for box, having in sources[place].items())
        if current and numbers + size > most * len(held):
            yield _round(current, sources, holders, costs, len(held))
            current, numbers = [], 0
        current.append(place)
        numbers += size
    if current:
        yield _round(current, sources, holders, costs, len(held))


def _round(
    places: Sequence[Place],
    sources: Mapping[Place, Mapping[Box, Sequence[int]]],
    holders: Mapping[Place, Sequence[int]],
    costs: Mapping[Place, float],
    ranks: int,
) -> Round:
    owners = owners_of({place: costs[place] for place in places}, holders, ranks)
    found: dict[Box, int] = {}
    load = [0] * ranks  # numbers that a rank sends to owners
    for place in places:
        for box, having in sorted(sources[place].items()):
            if owners[place] in having:
                found[box] = owners[place]
            else:
                found[box] = min(having, key=lambda rank: (load[rank], rank))
                load[found[box]] += box.numbers
    return Round(owners, found)
