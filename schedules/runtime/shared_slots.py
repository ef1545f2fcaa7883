"""Memory that two ranks share, in slots of one message each: the sender writes one, the receiver reads it in place and
gives it back."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_Shape = tuple[int, ...]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class Slot:
    """``capacity`` bytes at ``offset`` of the shared memory, mapped into this process at ``address``."""

    def __init__(self, descriptor: int, offset: int, capacity: int) -> None:
        self.offset, self.capacity = offset, capacity
        self._bytes = torch.frombuffer(_mapped(descriptor, offset, capacity), dtype=torch.uint8)
        self.address = self._bytes.data_ptr()
        self.end = self.address + capacity
        self._views: dict[tuple[torch.dtype, _Shape], Tensor] = {}

    def view(self, dtype: torch.dtype, shape: _Shape) -> Tensor:
        """The slot's beginning as a tensor; the same object whenever the same is asked for."""
        found = self._views.get((dtype, shape))
        if found is None:
            size = torch.Size(shape).numel() * dtype.itemsize
            found = self._views[dtype, shape] = self._bytes[:size].view(dtype).view(shape)
        return found


def _mapped(descriptor: int, offset: int, capacity: int) -> ctypes.Array[ctypes.c_ubyte]:
    """Shared memory, mapped for as long as somebody holds what is returned. The system's own call, for Python's keeps a
    descriptor for every mapping, of which a process may have few."""
    how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
    address = _libc.mmap(None, capacity, *how, descriptor, offset)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    found = (ctypes.c_ubyte * capacity).from_address(address)
    weakref.finalize(found, _libc.munmap, address, capacity).atexit = False  # a thread may be writing then
    return found


@contextmanager
def _needed(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"no shared memory for a message of {size} bytes: {error}") from error


class OutgoingSlots:
    """The sender's side: as many slots as are under way at once, and never fewer again."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._end = descriptor, 0
        self._free: dict[int, list[Slot]] = {}  # by capacity, in ascending order
        self._used: dict[int, Slot] = {}  # by offset

    def take(self, size: int) -> Slot | None:
        """The smallest free slot for ``size`` bytes, of them the one that came back last, of which the caches may still
        hold something; None where there is none."""
        for capacity, free in self._free.items():
            if free and capacity >= size:
                slot = free.pop()
                self._used[slot.offset] = slot
                return slot
        return None

    def add(self, size: int) -> Slot:
        """A new slot, in use. A power of two, so that messages of like sizes share slots; memory that no message has
        touched costs nothing. RuntimeError where the system has none."""
        capacity = max(mmap.ALLOCATIONGRANULARITY, 1 << (size - 1).bit_length())
        with _needed(size):
            os.ftruncate(self._descriptor, self._end + capacity)
            slot = Slot(self._descriptor, self._end, capacity)
        self._end += capacity
        self._used[slot.offset] = slot
        if capacity not in self._free:
            self._free = {each: self._free.get(each, []) for each in sorted([*self._free, capacity])}
        return slot

    def give_back(self, offset: int) -> None:
        slot = self._used.pop(offset)
        self._free[slot.capacity].append(slot)


class IncomingSlots:
    """The receiver's side: every slot is mapped once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def at(self, offset: int, capacity: int) -> Slot:
        """RuntimeError where it cannot be mapped."""
        slot = self._slots.get(offset)
        if slot is None:
            with _needed(capacity):
                slot = self._slots[offset] = Slot(self._descriptor, offset, capacity)
        return slot
