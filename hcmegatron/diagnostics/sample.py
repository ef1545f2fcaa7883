"""Which tokens of held-out text an observation looks at, and where a rank has them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Sample:
    """Positions of the first held-out sequences: the same tokens under every layout.

    Attributes:
        positions: of each sequence, evenly spread.
    """

    sequences: int
    positions: range

    @property
    def tokens(self) -> int:
        """T."""
        return self.sequences * len(self.positions)


class Slice(NamedTuple):
    """What a rank has of a micro-batch: its sequences from number `first` on, `rows` of them, and of each the tokens
    from `start` on, `length` of them."""

    first: int
    rows: int
    start: int
    length: int


def sample(wanted: int, sequence_length: int, there: int) -> Sample:
    """As few sequences as hold `wanted` tokens, of the `there` that there are, and about so many tokens of them."""
    sequences = min(-(-wanted // sequence_length), there)
    step = -(-sequences * sequence_length // wanted)
    return Sample(sequences, range(0, sequence_length, step))


def tokens_in(sample: Sample, part: Slice) -> list[tuple[int, int, int]]:
    """The sample's tokens that a rank has: (position in its part of the sequence, row, number among the T)."""
    per = len(sample.positions)
    return [
        (position - part.start, row, (part.first + row) * per + index)
        for row in range(part.rows)
        if part.first + row < sample.sequences
        for index, position in enumerate(sample.positions)
        if part.start <= position < part.start + part.length
    ]
