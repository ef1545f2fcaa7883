"""What ranks really hold, for tools.planned_memory and its tests: run these inside ranks (tests.ranks)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hcmegatron.config.schema import Config
from hcmegatron.platform.adam import MOMENTS
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer

STATIC = ("weights", "gradients", "optimizer state")


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of every distinct storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def resident(config: Config, tokens: int) -> tuple[int, int, int]:
    """Bytes of this rank's weights, gradients and optimizer state, after a step of Megatron's own objects."""
    torch.set_num_threads(1)
    with megatron_groups(config) as groups:
        seed_regions(config)
        chunks = build_model(config, tokens, groups)
        optimizer = build_optimizer(config, chunks, groups)
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.prepare_grads()
        optimizer.step_with_ready_grads()
        buffers = [b for chunk in chunks for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
        weights = storages(p for chunk in chunks for p in chunk.parameters())
        gradients = storages(buffer.grad_data for buffer in buffers)
        # a shard of fp32 weights is a view of them, and no copy
        updated = [p for own in optimizer.chained_optimizers for g in own.param_groups for p in g["params"]]
        states = [s for own in optimizer.chained_optimizers for s in own.optimizer.state.values()]
        held = storages([*updated, *(state[name] for state in states for name in MOMENTS)])
        state = sum(size for storage, size in held.items() if storage not in weights)
        return sum(weights.values()), sum(gradients.values()), state
