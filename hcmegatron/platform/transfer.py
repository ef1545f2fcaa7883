"""Copies from the host to the device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from schedules.runtime.gpu import GPU


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, copied by the current stream; itself where it is there already.

    From pinned memory, for a copy from any other holds up the host until the device gets to it.
    """
    if GPU.holds(tensor) or device in (tensor.device, torch.device("cpu")):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device that `other` is on, copied as by `to_device`."""
    return to_device(tensor, GPU.device() if GPU.holds(other) else other.device)


def reserve(sizes: Iterable[int]) -> None:
    """Pinned memory for copies of so many bytes each, all under way at once. torch keeps what it has allocated once;
    allocating it later may wait for the device."""
    if GPU.present():
        blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
        del blocks
