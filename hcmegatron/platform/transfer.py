"""Copies from the host to the device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, copied by the current stream; itself where it is there already.

    From pinned memory, for a copy from any other holds up the host until the device gets to it.
    """
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def reserve(sizes: Iterable[int]) -> None:
    """Pinned memory for copies of so many bytes each, all under way at once. torch keeps what it has allocated once;
    allocating it later may wait for the device."""
    if torch.cuda.is_available():
        blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
        del blocks
