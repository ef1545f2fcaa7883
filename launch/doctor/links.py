"""What messages between ranks take, over torch.distributed: every pair of machines, every pair of a machine, and all.

Machines meet in the rounds of a tournament, all ranks of one with those of the other at once, as pipeline neighbours
do; and meet again in a second one, of which the better figures count, since other programs disturb. A round takes at
most about ROUND_S: how often, and how much of, the run's message is sent is cut to that. So 64 machines, whose 2016
pairs are 63 rounds, take at most 2 x 63 x 0.32 s = 41 s where links carry 100 Mbit/s or more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from launch.doctor.rounds import rounds

if TYPE_CHECKING:
    import torch

ROUND_S, PASSES, COLLECTIVE_S = 0.3, 2, 1.0
_SMALL, _TRIAL = 8, 1 << 20  # bytes, for the latency and for a first idea of the rate
_FEW, _MANY = 3, 20
LARGEST = 256 << 20  # of a collective


class Link(NamedTuple):
    """A message between two ranks, one each way at once.

    Attributes:
        us: microseconds of the smallest message.
        gbs: GB/s one way of the run's message.
        bytes: how large that was.
    """

    us: float
    gbs: float
    bytes: int


def better(link: Link, other: Link | None) -> Link:
    """The best of two measurements."""
    return link if other is None else Link(min(link.us, other.us), max(link.gbs, other.gbs), link.bytes)


def partners(nodes: Sequence[Sequence[int]], rank: int) -> tuple[list[int | None], list[int | None]]:
    """Whom a rank exchanges with, round after round: of its own machine; then of the other machines. Pure.

    Args:
        nodes: the ranks of every machine.

    Returns:
        two lists, as long on every rank, with None for a round in which the rank waits.
    """
    own = next(index for index, ranks in enumerate(nodes) if rank in ranks)
    place = nodes[own].index(rank)
    within: list[int | None] = []
    for turn in rounds(max(map(len, nodes))):
        met = [b if a == place else a for a, b in turn if place in (a, b)]
        within.append(nodes[own][met[0]] if met and met[0] < len(nodes[own]) else None)
    between: list[int | None] = []
    for turn in rounds(len(nodes)):
        met = [nodes[b if a == own else a] for a, b in turn if own in (a, b)]
        between.append(met[0][place] if met and place < len(met[0]) else None)
    return within, between


class Links:
    """Measures over the default process group, of which this rank is number `rank`. Collective."""

    def __init__(self, device: torch.device, rank: int, say: Callable[[str], None]) -> None:
        self.device, self.rank, self.say = device, rank, say

    def pairs(self, turns: list[int | None], size: int, name: Callable[[int], str]) -> dict[int, Link]:
        """By partner, what a round with it showed.

        Args:
            size: bytes of the run's message.
            name: of a partner, for whoever asks what this rank was doing.
        """
        import torch.distributed as dist

        found: dict[int, Link] = {}
        for number, partner in enumerate(turns * PASSES):
            if partner is not None:
                self.say(f"round {number % len(turns) + 1} of {len(turns)}, with {name(partner)}")
                found[partner] = better(self._pair(partner, size), found.get(partner))
            dist.barrier()
        return found

    def collectives(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, float]]:
        """By name (all-reduce, all-to-all) the bytes and the median seconds over all ranks."""
        import torch
        import torch.distributed as dist

        ranks, found = dist.get_world_size(), {}
        run = {
            "all-reduce": lambda own, out: dist.all_reduce(own),
            "all-to-all": lambda own, out: dist.all_to_all_single(out, own),
        }

        def timed(name: str, size: int) -> float:
            own = torch.zeros(size // 4, device=self.device)
            out = torch.empty_like(own)
            return self._agreed(self._timed(lambda: run[name](own, out)))

        for name, asked in sizes.items():
            self.say(name)
            part = 4 * ranks  # every rank's share of whole numbers
            size = max(1, min(asked, LARGEST) // part) * part
            trial = max(1, min(size, _TRIAL) // part) * part
            timed(name, trial)  # makes the connections
            size = max(1, min(size, int(trial / timed(name, trial) * COLLECTIVE_S)) // part) * part
            repeats = max(_FEW, min(_MANY, int(COLLECTIVE_S / timed(name, size))))
            found[name] = size, statistics.median(timed(name, size) for _ in range(repeats))
        return found

    def _pair(self, partner: int, size: int) -> Link:
        self._exchange(partner, _SMALL)  # makes the connection
        latency = min(self._exchange(partner, _SMALL) for _ in range(_MANY))
        trial = min(self._exchange(partner, min(size, _TRIAL)) for _ in range(2))
        size, repeats = self._plan(partner, size, trial)
        seconds = statistics.median(self._exchange(partner, size) for _ in range(repeats))
        return Link(1e6 * latency, size / seconds / 1e9, size)

    def _plan(self, partner: int, size: int, trial: float) -> tuple[int, int]:
        """How much is sent how often; the lower rank decides, for both have seen other times."""
        import torch

        rate = min(size, _TRIAL) / trial
        size = max(
            _SMALL, min(size, int(rate * ROUND_S / 2 / _FEW))
        )  # half of it, for the rate was a first idea
        repeats = max(_FEW, min(_MANY, int(rate * ROUND_S / 2 / size)))
        mine = torch.tensor([size, repeats], device=self.device)
        theirs = torch.empty_like(mine)
        self._send_and_receive(partner, mine, theirs)
        chosen = mine if self.rank < partner else theirs
        return int(chosen[0]), int(chosen[1])

    def _exchange(self, partner: int, size: int) -> float:
        """Seconds of a message each way."""
        import torch

        mine, theirs = (torch.zeros(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        return self._timed(lambda: self._send_and_receive(partner, mine, theirs))

    @staticmethod
    def _send_and_receive(partner: int, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        import torch.distributed as dist

        both = [dist.P2POp(dist.irecv, theirs, partner), dist.P2POp(dist.isend, mine, partner)]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    def _timed(self, run: Callable[[], object]) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def _agreed(self, seconds: float) -> float:
        """The longest of all ranks."""
        import torch
        import torch.distributed as dist

        longest = torch.tensor(seconds, device=self.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return float(longest)
