"""Steps of small networks under Muon, run inside ranks (tests.ranks)."""

from __future__ import annotations

import numpy as np

from hcmegatron.config.schema import Config
from hcmegatron.model.execution import Execution
from hcmegatron.model.param_shards import param_shards
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.training.by_role import ByRole
from hcmegatron.training.model import gather_parameters, wrap_chunk
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches, chunks_of

RATE = 0.02


def trained(configs: list[Config], steps: int) -> list[dict[tuple, np.ndarray]]:
    """Of every network, which have one layout, what this rank holds after `steps` steps: by checkpoint key, leading
    indices and offset."""
    with megatron_groups(configs[0]) as groups:
        return [_trained(config, groups, steps) for config in configs]


def _trained(config: Config, groups: object, steps: int) -> dict[tuple, np.ndarray]:
    seed_regions(config)
    chunks = chunks_of(config, groups)
    wrapped = [wrap_chunk(chunk, config, groups) for chunk in chunks]
    optimizer = build_optimizer(config, wrapped, groups)
    assert all(isinstance(each.optimizer, ByRole) for each in optimizer.chained_optimizers)
    set_learning_rate(optimizer, RATE, config.optimizer.weight_decay)
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    schedule = build_forward_backward(config, wrapped, groups, Execution())
    stepper = Stepper(config, wrapped, optimizer, schedule, batches, groups)
    for step in range(steps):
        assert not stepper.step(step).bad
    gather_parameters(wrapped)
    return {
        (part.key, part.leading, part.offset): part.data.detach().double().numpy().copy()
        for chunk in chunks
        for part in param_shards(chunk)
        if part.data.is_floating_point()
    }
