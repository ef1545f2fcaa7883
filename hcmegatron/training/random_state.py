"""The random states of this rank: torch's CPU generator, the device's, and Megatron's regions."""

from __future__ import annotations

from typing import Any

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from megatron.core import tensor_parallel


def random_state() -> dict[str, Any]:
    """A copy of every generator's state, fit for a checkpoint."""
    regions = tensor_parallel.get_cuda_rng_tracker().get_states()
    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "regions": {name: state.clone() for name, state in regions.items()},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["regions"])
