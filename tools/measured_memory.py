"""What ranks really hold, for tools.planned_memory and its tests: run these inside ranks (tests.ranks)."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
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
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from schedules.runtime import Runtime
from tests.as_on_a_gpu import no_padding
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
        held = storages([*updated, *(state[name] for state in states for name in state if name != "step")])
        state = sum(size for storage, size in held.items() if storage not in weights)
        return sum(weights.values()), sum(gradients.values()), state


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that something still holds.

    Args:
        before: what was there before, and is not counted.
        where: the number of the action that runs.
        received: what is held elsewhere, receive buffers in use: their bytes by stage and micro-batch.

    Attributes:
        most, left: by action, the most while it ran, and what was held when it had ended.
    """

    def __init__(
        self, before: Iterable[Tensor], where: Callable[[], int], received: Callable[[], Counter] = Counter
    ) -> None:
        super().__init__()
        self.where, self.received = where, received
        self.most: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self._known = {storage._cdata: storage for storage in map(Tensor.untyped_storage, before)}
        self._made: dict[int, weakref.ref] = {}
        self._action, self._received = -1, Counter()

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.look()
        self._know(args)
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self._known and place not in self._made:
                    self._made[place] = weakref.ref(storage, lambda _, place=place: self._made.pop(place))
        self._received = self.received()
        self.most[self._action] = max(self.most[self._action], self.now + self._received.total())
        return made

    def _know(self, args: tuple) -> None:
        """What an operation reads and none has made was there before: tables of angles, masks."""
        for tensor in tree_leaves(args):
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                if storage._cdata not in self._made:
                    self._known.setdefault(storage._cdata, storage)

    @property
    def now(self) -> int:
        """Bytes at this moment. Selective recomputation empties storages, and fills them again."""
        return sum(storage.nbytes() for ref in list(self._made.values()) if (storage := ref()) is not None)

    def look(self) -> None:
        """Note what there is, if another action runs."""
        if (action := self.where()) != self._action:
            received = self.received()  # of what it was before, the next action has taken its message already
            self.left[self._action] = self.now + (self._received & received).total()
            self._action = action
            self.most.setdefault(action, self.now + received.total())


class Moving(NamedTuple):
    """What comes and goes in a rank's step beside the pool of receive buffers: most bytes at any moment and at the end
    of an action, and which these were."""

    most: int
    during: str
    between: int
    after: str


def _in_use(runtime: Runtime) -> Counter[tuple[int, int]]:
    """Bytes of receive buffers that have come and are not done with."""
    held = runtime._p2p._held
    return Counter({key: sum(tensor.nbytes for tensor in own) for key, own in held.items()})


def moving(configs: list[Config], tokens: int) -> list[Moving]:
    """Of one step of every configuration on this rank, as on a GPU: its experts need no rows of zeros."""
    torch.set_num_threads(1)
    with no_padding():
        return [_moving(config, tokens) for config in configs]


def _moving(config: Config, tokens: int) -> Moving:
    with megatron_groups(config) as groups:
        seed_regions(config)
        chunks = build_model(config, tokens, groups)
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        held = most_held(config, batches.micro_batches, groups.pp.rank())
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
            live = Live(before, lambda: runtime.position.index, lambda: _in_use(runtime))
        else:
            names, live = ["Megatron's own"], Live(before, lambda: 0)
        with live:
            stepper.gradients(0)
        live.where = lambda: len(names)
        live.look()
        during = max(range(len(names)), key=lambda i: live.most.get(i, 0))
        after = max(range(len(names)), key=lambda i: live.left.get(i, 0))
        return Moving(live.most[during], names[during], live.left[after], names[after])
