"""Random numbers as a function of what they are for, not of how many were drawn before."""

from __future__ import annotations

import hashlib

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.random import _MODEL_PARALLEL_RNG_TRACKER_NAME as REGION


def seed_of(*identity: object) -> int:
    """63 bits that are a function of how `identity` is written, the same in every process and version of Python."""
    digest = hashlib.sha256("/".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_draws(seed: int) -> None:
    """What the device draws next, directly or inside Megatron's tensor-parallel region, is a function of `seed`.

    The region is where Megatron's embedding draws under sequence parallelism, and Transformer Engine's attention.
    Nothing waits for the device: the generators of GPUs, too, keep their state on the host. (Those of CPUs take 32
    bits of the seed.)
    """
    generator = (
        torch.cuda.default_generators[torch.cuda.current_device()]
        if torch.cuda.is_available()
        else torch.default_generator
    )
    generator.manual_seed(seed)
    tracker = get_cuda_rng_tracker()
    tracker.set_states(tracker.get_states() | {REGION: generator.get_state()})
