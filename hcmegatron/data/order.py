"""Which window of which source is the sample-th of a whole training run: a function of the seed and that number alone.

Nothing of it depends on how long the training is, on the batch size or on the layout, so longer training goes on with
the same order, and another batch size goes on at the right sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from math import lcm

import numpy as np

from hcmegatron.config.errors import ConfigError

DRAWN = 1 << 20  # windows of an epoch up to which its order is drawn and held
LONGEST_PERIOD = 1 << 17
_ROUNDS = 6
_WORD = (1 << 64) - 1


class Order:
    """Samples of one or more sources.

    Args:
        sizes: windows in an epoch of each source.
        weights: shares of the samples, in whole numbers; None: of one source only.
    """

    def __init__(self, sizes: Sequence[int], seed: int, weights: Sequence[int] | None = None) -> None:
        self.sizes, self.seed, self.weights = list(sizes), seed, list(weights or [1])
        # of every source two: a step may end in the epoch after the one that it begins in
        self._drawn = lru_cache(2 * len(self.sizes))(self._draw)

    def __call__(self, sample: int) -> tuple[int, int]:
        """(source, window of the source) of a sample."""
        source, number = self.source(sample)
        epoch, place = divmod(number, self.sizes[source])
        size = self.sizes[source]
        if size > DRAWN:
            return source, scattered(place, size, self.seed, epoch, source)
        return source, int(self._drawn(source, epoch)[place])

    def source(self, sample: int) -> tuple[int, int]:
        """A sample's source, and how many samples of that source are before it."""
        if len(self.weights) == 1:
            return 0, sample
        periods, place = divmod(sample, len(self._blend[0]))
        source = int(self._blend[0][place])
        return source, periods * self.weights[source] + int(self._blend[1][place])

    def _draw(self, source: int, epoch: int) -> np.ndarray:
        return permutation(self.sizes[source], self.seed, epoch, source)

    @cached_property
    def _blend(self) -> tuple[np.ndarray, np.ndarray]:
        """(source, samples of it before) of every place of a period, after which each has had its weight to the sample.

        Sample c of a source with share w is due from place floor(c / w) on, until ceil((c + 1) / w). Always taking
        the one whose time ends first keeps all of them (Baruah et al., Proportionate Progress, 1996), so that in any
        number of samples a source is less than one away from its share. (Megatron's helper, which takes the one that is
        furthest behind, was seen 1.2 away with three sources.)
        """
        period, weights = sum(self.weights), self.weights
        taken = [0] * len(weights)
        sources, before = np.zeros(period, np.int16), np.zeros(period, np.int64)
        for place in range(period):
            due = (s for s, weight in enumerate(weights) if taken[s] * period // weight <= place)
            source = min(due, key=lambda s: -(-(taken[s] + 1) * period // weights[s]))
            sources[place], before[place] = source, taken[source]
            taken[source] += 1
        return sources, before


def whole_weights(written: Sequence[str]) -> list[int]:
    """Weights such as 0.7 and 0.3 as the smallest whole numbers, 7 and 3.

    Raises:
        ConfigError: one is not above 0, or they have more digits than a period of samples can hold.
    """
    shares = [Fraction(text) for text in written]
    if min(shares) <= 0:
        raise ConfigError(f"a weight of {written[shares.index(min(shares))]}; weights are numbers above 0")
    shares = [share / sum(shares) for share in shares]
    period = lcm(*(share.denominator for share in shares))
    if period > LONGEST_PERIOD:
        raise ConfigError(
            f"weights {', '.join(written)} repeat only after {period:,} samples; give them with fewer digits, so that "
            f"it is {LONGEST_PERIOD:,} or fewer"
        )
    return [int(share * period) for share in shares]


def permutation(size: int, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """The order of an epoch, from raw generator bits, which NumPy keeps the same from version to version."""
    return np.argsort(np.random.PCG64([seed, epoch, source]).random_raw(size), kind="stable")


def scattered(place: int, size: int, seed: int, epoch: int, source: int) -> int:
    """Place `place` of a permutation of `size` numbers that is never written out: a Feistel network over the next even
    power of two, walked until it is within `size` (Black and Rogaway, 2002)."""
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    keys = np.random.SeedSequence([seed, epoch, source]).generate_state(_ROUNDS, np.uint64)
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ int(key)) & mask)
        place = left << half | right
        if place < size:
            return place


def _mixed(value: int) -> int:
    """The finalizer of SplitMix64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)
