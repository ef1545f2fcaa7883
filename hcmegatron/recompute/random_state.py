"""Random numbers drawn again as they were drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from megatron.core.tensor_parallel import get_cuda_rng_tracker


class RandomState(NamedTuple):
    """What `leave` may draw from: the device's generator, and Megatron's regions (sequence parallelism)."""

    generator: Tensor
    regions: dict[str, Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """The present state."""
        generator = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()
        return cls(generator, get_cuda_rng_tracker().get_states())

    def restore(self) -> None:
        """Back to this state."""
        (torch.cuda.set_rng_state if torch.cuda.is_available() else torch.set_rng_state)(self.generator)
        get_cuda_rng_tracker().set_states(dict(self.regions))


@contextmanager
def replaying(state: RandomState | None) -> Iterator[None]:
    """Random numbers as they were, and afterwards as they are now. None: nothing random happens inside."""
    if state is None:
        yield
        return
    now = RandomState.now()
    state.restore()
    try:
        yield
    finally:
        now.restore()
