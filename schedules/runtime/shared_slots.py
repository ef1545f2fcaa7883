"""Memory that two ranks share, in slots of one message each: the sender writes one, the receiver reads it in place and
gives it back."""

from __future__ import annotations

import mmap
import os

import torch
from torch import Tensor

_Shape = tuple[int, ...]


class Slot:
    """``capacity`` bytes at ``offset`` of the shared memory, mapped into this process at ``address``."""

    def __init__(self, descriptor: int, offset: int, capacity: int) -> None:
        self.offset, self.capacity = offset, capacity
        self._bytes = torch.frombuffer(mmap.mmap(descriptor, capacity, offset=offset), dtype=torch.uint8)
        self.address = self._bytes.data_ptr()
        self._views: dict[tuple[torch.dtype, _Shape], Tensor] = {}

    def view(self, dtype: torch.dtype, shape: _Shape) -> Tensor:
        """The slot's beginning as a tensor; the same object whenever the same is asked for."""
        found = self._views.get((dtype, shape))
        if found is None:
            size = torch.Size(shape).numel() * dtype.itemsize
            found = self._views[dtype, shape] = self._bytes[:size].view(dtype).view(shape)
        return found


class OutgoingSlots:
    """The sender's side: as many slots as are under way at once, and never fewer again."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._end = descriptor, 0
        self._free: list[Slot] = []
        self._used: dict[int, Slot] = {}  # by offset

    def take(self, size: int) -> Slot | None:
        """The smallest free slot for ``size`` bytes; None where there is none."""
        fitting = [slot for slot in self._free if slot.capacity >= size]
        if not fitting:
            return None
        slot = min(fitting, key=lambda one: one.capacity)
        self._free.remove(slot)
        self._used[slot.offset] = slot
        return slot

    def add(self, size: int) -> Slot:
        """A new slot, in use. A power of two, so that messages of like sizes share slots; memory that no message has
        touched costs nothing."""
        capacity = max(mmap.ALLOCATIONGRANULARITY, 1 << (size - 1).bit_length())
        os.ftruncate(self._descriptor, self._end + capacity)
        slot = Slot(self._descriptor, self._end, capacity)
        self._end += capacity
        self._used[slot.offset] = slot
        return slot

    def give_back(self, offset: int) -> None:
        self._free.append(self._used.pop(offset))


class IncomingSlots:
    """The receiver's side: every slot is mapped once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def at(self, offset: int, capacity: int) -> Slot:
        slot = self._slots.get(offset)
        if slot is None:
            slot = self._slots[offset] = Slot(self._descriptor, offset, capacity)
        return slot
