"""Who is measured with whom and when, and whose fault a bad pair is. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

Pair = tuple[int, int]  # ascending


def rounds(players: int) -> list[list[Pair]]:
    """A round-robin tournament by the circle method: every two meet once, and nobody is in two pairs of a round.

    players - 1 rounds of players / 2 pairs; of an odd number, players rounds, in each of which another one waits.
    """
    circle = list(range(players + players % 2))  # the last of an even circle stands still, or is nobody
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(min(pair), max(pair)) for pair in pairs if max(pair) < players])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def blame(players: Iterable[int], bad: Collection[Pair]) -> tuple[list[int], list[Pair]]:
    """(players, links) that the bad pairs are laid to.

    A player more than half of whose pairs are bad, and at least two, is bad itself; it is taken out and the rest judged
    anew. What then remains are bad links between players that others reach well.
    """
    left, pairs, guilty = set(players), set(bad), []
    while True:
        row = Counter(player for pair in pairs for player in pair)
        worst = max(left, key=lambda player: (row[player], player), default=None)  # of equals the last
        if worst is None or row[worst] < 2 or row[worst] <= (len(left) - 1) / 2:
            return sorted(guilty), sorted(pairs)
        guilty.append(worst)
        left.remove(worst)
        pairs = {pair for pair in pairs if worst not in pair}


def cover(links: Iterable[Pair]) -> list[int]:
    """Players without which no bad link is left: again and again the one with most of them, of equals the last.

    So rank 0's machine, which runs the batch script, is left out only where that takes fewer machines.
    """
    left, found = set(links), []
    while left:
        row = Counter(player for pair in left for player in pair)
        worst = max(row, key=lambda player: (row[player], player))
        found.append(worst)
        left = {pair for pair in left if worst not in pair}
    return sorted(found)
