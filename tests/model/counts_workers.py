"""What the rank of test_counts.py does: builds the papers' models without memory, and trains small ones."""

from __future__ import annotations

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import build_chunk, stages
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches


def built(configs: list[Config]) -> list[int]:
    """Parameters of every whole model, built on the meta device."""
    counts = []
    with megatron_groups(configs[0]) as groups:
        for config in configs:
            with torch.device("meta"):
                whole = stages(config.model.layers, 1)[0]
                model = build_chunk(config, whole, 257, groups)
            held = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
            assert not held, held[:5]
            counts.append(sum(parameter.numel() for parameter in model.parameters()))
    return counts


def two_steps(configs: list[Config]) -> list[tuple[list[float], int, int]]:
    """Of every model: losses of two steps on the same tokens, parameters that moved, parameters in all."""
    found = []
    with megatron_groups(configs[0]) as groups:
        for config in configs:
            seed_regions(config)
            chunks = build_model(config, 257, groups)
            optimizer = build_optimizer(config, chunks, groups)
            set_learning_rate(optimizer, 3e-3, config.optimizer.weight_decay)
            batches = Batches(config, 0, 1)
            schedule = build_forward_backward(config, chunks, groups, Execution())
            stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
            before = [p.detach().clone() for p in chunks[0].parameters()]
            results = [stepper.step(0) for _ in range(3)]
            assert all(result.updated for result in results)
            moved = [not torch.equal(a, b) for a, b in zip(before, chunks[0].parameters(), strict=True)]
            found.append(([result.loss for result in results], sum(moved), len(moved)))
    return found
