"""What a machine has to give to runs beside each other: cores, and GPUs where there are any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Slot(NamedTuple):
    """What a run gets.

    Attributes:
        number: of the slot.
        cores: that it may run on; all of them where there are fewer cores than slots.
        gpus: their names in CUDA_VISIBLE_DEVICES; none where it computes on CPUs.
    """

    number: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()


class Slots:
    """So many places for runs. Cores belong to a place, so that a run is computed alike whatever is beside it; GPUs go
    to whoever is next.

    Args:
        jobs: how many places.
        cores, gpus: of the machine.
    """

    def __init__(self, jobs: int, cores: Sequence[int], gpus: Sequence[str] = ()) -> None:
        share, rest = divmod(len(cores), jobs)
        self._cores: list[tuple[int, ...]] = []
        begin = 0
        for number in range(jobs):
            end = begin + share + (number < rest)
            self._cores.append(tuple(cores[begin:end]) if share else tuple(cores))
            begin = end
        self._free = list(range(jobs))
        self.gpus = list(gpus)

    def take(self, ranks: int) -> Slot | None:
        """A place for a run of so many ranks; None where there is none now."""
        if not self._free or (self.gpus and len(self.gpus) < ranks):
            return None
        number = self._free.pop(0)
        gpus, self.gpus = tuple(self.gpus[:ranks]), self.gpus[ranks:]
        return Slot(number, self._cores[number], gpus)

    def give(self, slot: Slot) -> None:
        """A place back."""
        self._free = sorted([*self._free, slot.number])
        self.gpus = sorted([*self.gpus, *slot.gpus])


def cores_of_machine() -> list[int]:
    """Those that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def gpus_of_machine() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them. CUDA is not asked, since a process that has started it cannot be forked."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
