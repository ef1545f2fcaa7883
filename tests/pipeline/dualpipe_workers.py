"""What the ranks of a DualPipe test run: whole runs, with a look at the copies of every stage at the end."""

from __future__ import annotations

import hashlib
import os
from functools import partial

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, model
from hcmegatron.training.run import train
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def run(config: Config, bucket_size: int | None = None) -> dict[int, dict[str, str]]:
    """Train; per model stage on this rank, digests of its parameters, buffers and optimizer state.

    Args:
        bucket_size: parameters whose gradients are reduced together, which a large model has many times over.
    """
    model.DistributedDataParallelConfig = partial(
        model.DistributedDataParallelConfig, bucket_size=bucket_size
    )
    found: dict[int, dict[str, str]] = {}
    usual_save = checkpoint.Checkpoints.save

    def looking(self, at, **options):
        where = placement(config.parallel)
        # Megatron's order of ranks: the pipeline's are furthest apart
        rank = int(os.environ["RANK"]) // (int(os.environ["WORLD_SIZE"]) // where.ranks)
        for stage, chunk in zip(where.stages_of(rank), self.chunks, strict=True):
            found[where.model_stage(stage)] = digests(unwrap(chunk), self.optimizer)
        return usual_save(self, at, **options)

    checkpoint.Checkpoints.save = looking
    assert train(config, discover_ranks(os.environ)) == 0
    return found


def digests(module: torch.nn.Module, optimizer) -> dict[str, str]:
    """Of every parameter and buffer, and of what the optimizer holds for it: its state, and under the distributed
    optimizer the weights that it updates."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, parameter in module.named_parameters():
        for one in optimizer.chained_optimizers:
            updated = parameter
            if isinstance(one, DistributedOptimizer):
                place = one.model_param_group_index_map.get(parameter)
                updated = place and one.optimizer.param_groups[place[0]]["params"][place[1]]
            if updated not in one.optimizer.state:
                continue
            tensors[f"{name}/updated"] = updated
            state = one.optimizer.state[updated]
            tensors |= {f"{name}/{key}": value for key, value in state.items() if torch.is_tensor(value)}
    return {
        name: hashlib.sha256(
            tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors.items()
    }
