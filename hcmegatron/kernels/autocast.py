"""Functions with a backward by hand choose their precision themselves: autocast, which would change that of a product
in their middle, is off inside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(method: Callable[P, R]) -> Callable[P, R]:
    """The forward or backward of a torch.autograd.Function, whatever is around its call."""

    @functools.wraps(method)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return run(*arguments, **named)
        return method(*arguments, **named)

    return run
