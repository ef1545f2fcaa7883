"""Which samples a step takes where some of the data's order are left out. No torch.

The order of the data is counted in samples, and left-out ones are counted too: a position in it means the same samples
whatever was left out before it, and whatever the batch size is.
"""

from __future__ import annotations

from collections.abc import Sequence

LeftOut = tuple[tuple[int, int], ...]  # (first, stop) of each range, in the order in which they were left out


def next_samples(seen: int, count: int, left_out: LeftOut) -> Sequence[int]:
    """The numbers of the next `count` samples of the data's order, after `seen` of them were taken or left out."""
    if not left_out:
        return range(seen, seen + count)
    taken: list[int] = []
    at = seen
    while len(taken) < count:
        inside = [stop for first, stop in left_out if first <= at < stop]
        if inside:
            at = max(inside)
            continue
        ahead = [first for first, _ in left_out if first > at]
        end = min([at + count - len(taken), *ahead])
        taken += range(at, end)
        at = end
    return taken


def in_words(left_out: LeftOut) -> str:
    """Ranges as they are told: "sequences 4 to 7, 12 to 15"."""
    return "sequences " + ", ".join(f"{first} to {stop - 1}" for first, stop in left_out)
