"""What the ranks of a DualPipe test run: whole runs, with a look at the copies of every stage at the end."""

from __future__ import annotations

import hashlib
import os

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.placement import placement
from hcmegatron.platform.ranks import discover
from hcmegatron.training import checkpoint
from hcmegatron.training.run import train


def run(config: Config) -> dict[int, dict[str, str]]:
    """Train; per model stage on this rank, digests of its parameters, buffers and optimizer state."""
    found: dict[int, dict[str, str]] = {}
    usual_save = checkpoint.Checkpoints.save

    def looking(self, step):
        where = placement(config)
        chunks, rank = self.chunks, int(os.environ["RANK"]) % where.ranks
        for stage, chunk in zip(where.stages_of(rank), chunks, strict=True):
            found[where.model_stage(stage)] = digests(unwrap(chunk), self.optimizer)
        return usual_save(self, step)

    checkpoint.Checkpoints.save = looking
    assert train(config, discover(os.environ)) == 0
    return found


def digests(model: torch.nn.Module, optimizer) -> dict[str, str]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        parameter: values
        for one in optimizer.chained_optimizers
        for parameter, values in one.optimizer.state.items()
    }
    for name, parameter in model.named_parameters():
        for key, value in state.get(parameter, {}).items():
            if torch.is_tensor(value):
                tensors[f"{name}/{key}"] = value
    return {
        name: hashlib.sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
