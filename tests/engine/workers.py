"""What the ranks of the tests of Transformer Engine's layers do. Imported there only: it installs the stub."""

from __future__ import annotations

from dataclasses import dataclass

import tests.engine.stub  # noqa: F401  isort: skip  (before Megatron-Core)

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.model.te_wgrad import of_engine
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import seed_regions
from hcmegatron.training.model import wrap
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches, chunks_of, gradients, whole_gradients
from tests.model.workers import groups_of


@dataclass
class Found:
    """A step on one rank: its sums of losses and tokens, and gradients by their place in the network."""

    loss: list[float]
    gradients: dict[tuple, bytes]
    engine: dict[str, int]  # Transformer Engine's modules, by class
    local: int  # Megatron's linears, beside the head's
    separable: int


def steps(configs: list[Config]) -> list[Found]:
    torch.set_num_threads(1)
    found = []
    for config in configs:
        with groups_of(config) as groups:
            found.append(_step(config, groups))
    return found


def _step(config: Config, groups: object) -> Found:
    seed_regions(config)
    chunks = chunks_of(config, groups)
    wrapped = [wrap(chunk, config, groups) for chunk in chunks]
    optimizer = build_optimizer(config, wrapped, groups)
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    stepper = Stepper(config, wrapped, optimizer, build_schedule(config, wrapped, groups), batches, groups)
    if config.parallel.overlap_grad_reduce:
        stepper.rehearse()  # Megatron overlaps from the second step on
    sums, _ = stepper.gradients(0)
    dist.all_reduce(sums)
    whole_gradients(wrapped)
    engine: dict[str, int] = {}
    local = 0
    for chunk in chunks:
        for name, module in chunk.named_modules():
            if of_engine(module):
                engine[type(module).__name__] = engine.get(type(module).__name__, 0) + 1
            elif type(module).__name__.endswith("ParallelLinear") and name != "output_layer":
                local += 1
    return Found(
        sums.tolist(),
        {(key, leading, offset): value.tobytes() for key, leading, offset, value in gradients(wrapped)},
        engine,
        local,
        sum(getattr(p, "separable", False) for chunk in chunks for p in chunk.parameters()),
    )
