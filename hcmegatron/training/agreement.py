"""Who of the ranks that hold, or have computed, the same thing has other bits than the others.

A flipped bit in a memory or a multiplier that miscounts raises nothing: the loss goes on, a little off. What ranks have
in common shows it: what two of them would read from the same place of a checkpoint has to be the same, bit for bit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hcmegatron.platform.seeds import seed_of
from hcmegatron.training.checkpoint_state import to_load
from megatron.core.optimizer.optimizer import ChainedOptimizer

# Elements that are hashed at once. Intermediate results are 64 bits each: on a CPU they fit its cache, on a GPU they
# come from few kernels.
AT_ONCE = {"cpu": 2**16, "cuda": 2**22}
# By bytes of an element. Not int64: a change of its highest bit would be the same change at every place.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
# Odd numbers (the golden ratio's and one of SplitMix64's 64 bits), so that multiplying loses nothing.
STEP, MIX = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64


class Differing(NamedTuple):
    """A thing that ranks hold differently: who has it, and those without the bits of more than half."""

    holders: tuple[int, ...]
    odd: tuple[int, ...]


def bits_hash(tensor: Tensor) -> int:
    """64 bits of a tensor's, in which any single flipped one shows, and the order of elements.

    Whole numbers modulo 2^64: the same on every device of a kind, in whatever order it adds.
    """
    bits = tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()])
    factors = _factors(tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in bits.split(len(factors)):
        total = total * MIX + (part * factors[: part.numel()]).sum()
    return int(total)


@cache
def _factors(where: torch.device) -> Tensor:
    """An odd number for each of the elements that are hashed at once: a change of one times that is never 0."""
    return (torch.arange(AT_ONCE[where.type], dtype=torch.int64, device=where) * STEP) ^ MIX | 1


def state_held(chunks: list[nn.Module], optimizer: ChainedOptimizer) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state of this rank, by their places in the whole network's."""
    of_model, of_optimizer = to_load(chunks, optimizer)
    return {
        f"{piece.key} at {list(piece.offset)} of {list(piece.data.shape)} ({holder}'s)": piece.data
        for holder, pieces in (("model", of_model), ("optimizer", of_optimizer))
        for piece in pieces
        if piece.data.numel()
    }


def gradients_held(chunks: list[nn.Module], sums: Tensor, place: str) -> dict[str, Tensor]:
    """Losses and gradients of this rank, by the place in the layout that it shares with data-parallel ranks alone."""
    buffers = [buffer.grad_data for chunk in chunks for buffer in chunk.buffers]
    found = {f"gradients {number} of {place}": buffer for number, buffer in enumerate(buffers)}
    return {**found, f"loss of {place}": sums}


def hashed(held: Mapping[str, Tensor]) -> dict[int, int]:
    """Names and bits as numbers, for the way from rank to rank."""
    return {seed_of(name): bits_hash(tensor) for name, tensor in held.items()}


def differing(everyones: Sequence[Mapping[int, int]]) -> dict[int, Differing]:
    """By thing, where its holders do not agree. Pure.

    Args:
        everyones: by rank, the bits of each thing that it holds.
    """
    holders: dict[int, dict[int, int]] = defaultdict(dict)
    for rank, held in enumerate(everyones):
        for thing, bits in held.items():
            holders[thing][rank] = bits
    found = {}
    for thing, by_rank in holders.items():
        (most, count), *others = Counter(by_rank.values()).most_common()
        if others:
            decided = 2 * count > len(by_rank)
            odd = [rank for rank, bits in by_rank.items() if not (decided and bits == most)]
            found[thing] = Differing(tuple(by_rank), tuple(odd))
    return found


def in_words(found: Iterable[Differing], names: Sequence[str], where: Sequence[str]) -> str:
    """The odd ranks with how many things each has differently, and one of those by name.

    Args:
        names: by rank, of the first thing that it has differently; "" where it has none.
        where: by rank, its host and device.
    """
    counts: Counter[int] = Counter()
    decided = True
    for each in found:
        counts.update(each.odd)
        decided &= len(each.odd) < len(each.holders)
    ranks = ", ".join(
        f"rank {rank} ({where[rank]}) has other bits in {count} of them, the first {names[rank]}"
        for rank, count in sorted(counts.items())
    )
    return ranks + ("" if decided else "; no majority says which of them is wrong")
