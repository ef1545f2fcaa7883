"""What ranks really hold, for tools.planned_memory and its tests: run these inside ranks (tests.ranks)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.adam import MOMENTS
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches

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


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that something still holds.

    Args:
        before: what was there before, and is not counted.
        where: the number of the action that runs.

    Attributes:
        now: bytes at this moment.
        most, left: by action, the most while it ran, and what was held when it had ended.
    """

    def __init__(self, before: Iterable[Tensor], where: Callable[[], int]) -> None:
        super().__init__()
        self.where, self.now = where, 0
        self.most: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self._sizes = dict.fromkeys(storages(before), 0)
        self._action = -1

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.look()
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                place = storage.data_ptr()
                if place not in self._sizes:
                    self._sizes[place] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, place)
        self.most[self._action] = max(self.most[self._action], self.now)
        return made

    def look(self) -> None:
        """Note what there is, and whether another action runs."""
        self.left[self._action] = self.now
        self._action = self.where()
        self.most.setdefault(self._action, self.now)

    def _gone(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


class Moving(NamedTuple):
    """What comes and goes in a rank's step beside the pool of receive buffers: most bytes at any moment and at the end
    of an action, and which these were."""

    most: int
    during: str
    between: int
    after: str


def moving(configs: list[Config], tokens: int) -> list[Moving]:
    """Of one step of every configuration on this rank."""
    torch.set_num_threads(1)
    return [_moving(config, tokens) for config in configs]


def _moving(config: Config, tokens: int) -> Moving:
    with megatron_groups(config) as groups:
        seed_regions(config)
        chunks = build_model(config, tokens, groups)
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        held = most_held(config.parallel, batches.micro_batches, groups.pp.rank())
        models = [unwrap(chunk) for chunk in chunks]
        recomputation = Recomputation(config.recompute, models, micro_batch_tokens(config), *held)
        optimizer = build_optimizer(config, chunks, groups)
        schedule = build_forward_backward(config, chunks, groups, recomputation.execution)
        stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
        stepper.gradients(0)  # as training rehearses: what every step uses again is there
        gc.collect()
        buffers = [b for chunk in chunks for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
        before = [b.grad_data for b in buffers]
        before += [t for chunk in chunks for t in (*chunk.parameters(), *unwrap(chunk).buffers())]
        if isinstance(schedule, ScheduleRunner):
            runtime = schedule._runtime(batches.micro_batches, False)
            names = [str(op.action) for op in runtime.program.ops]
            before += [buffer.flat for buffer in runtime._pool._free]
            live = Live(before, lambda: runtime.position.index)
        else:
            names, live = ["Megatron's own"], Live(before, lambda: 0)
        with live:
            stepper.gradients(0)
        live.look()
        during = max(range(len(names)), key=lambda i: live.most.get(i, 0))
        after = max(range(len(names)), key=lambda i: live.left.get(i, 0))
        return Moving(live.most[during], names[during], live.left[after], names[after])
