"""Who holds what: pipeline stages and their layers, groups of ranks, and which of them share a node. Without torch.

Ranks are numbered as Megatron numbers them: tensor-parallel neighbours first, then data-parallel ones (expert-parallel
ranks are neighbours among these), pipeline stages last. Nodes take consecutive ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hcmegatron.config.checks import check_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.planner.machines import Machine
from hcmegatron.planner.scheduled import placement
from hcmegatron.planner.scheduled import training_schedule as schedule  # noqa: F401 (whoever simulates asks here)
from hcmegatron.planner.stages import ModelStage, stages
from schedules.placement import Placement

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: how many, and how many of them share a node (a node's part of the group)."""

    size: int
    on_node: int


@dataclass(frozen=True)
class Layout:
    """A configuration on so many GPUs of a machine.

    Attributes:
        microbatches: of one data-parallel rank in a step.
        known: what was found once; layouts that differ in micro-batch and recomputation alone may share it.
    """

    config: Config
    machine: Machine
    gpus: int
    microbatches: int
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Any, find: Callable[[], T]) -> T:
        """`find()`, called the first time only."""
        if key not in self.known:
            self.known[key] = find()
        return self.known[key]

    @property
    def data(self) -> int:
        """The data-parallel size."""
        parallel = self.config.parallel
        return self.gpus // (parallel.pipeline * parallel.tensor)

    @property
    def expert_data(self) -> int:
        """Ranks that hold the same experts."""
        parallel = self.config.parallel
        return self.gpus // (parallel.pipeline * parallel.expert * parallel.expert_tensor)

    @property
    def placement(self) -> Placement:
        """As pipeline.placement has it."""
        return self.once("placement", lambda: placement(self.config.parallel))

    @property
    def stages(self) -> tuple[ModelStage, ...]:
        """Model stages."""
        layers, count = self.config.model.layers, self.placement.model_stages
        return self.once("stages", lambda: tuple(stages(layers, count)))

    @property
    def model_stages(self) -> tuple[tuple[int, ...], ...]:
        """By pipeline rank the model stages of its chunks, as the placement lists them."""
        where = self.placement

        def find() -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(map(where.model_stage, where.stages_of(rank))) for rank in range(where.ranks))

        return self.once("model stages", find)

    def held(self, rank: int) -> tuple[ModelStage, ...]:
        """The chunks of a pipeline rank."""
        return tuple(self.stages[stage] for stage in self.model_stages[rank])

    @property
    def distinct_ranks(self) -> list[int]:
        """The first pipeline rank of those that hold as many layers of each kind, and embedding and head alike."""

        def find() -> list[int]:
            found: dict[Any, int] = {}
            for rank in range(self.placement.ranks):
                shape = tuple(map(self.kind_of, self.model_stages[rank]))
                found.setdefault(shape, rank)
            return list(found.values())

        return self.once("distinct ranks", find)

    def kind_of(self, stage: int) -> tuple[int, int, bool, bool]:
        """Model stages that are alike: how many layers are dense and have experts, embedding, head."""

        def find() -> tuple[int, int, bool, bool]:
            held = self.stages[stage]
            return (*self.layers_of_kinds(held), held.first, held.last)

        return self.once(("kind", stage), find)

    def layers_of_kinds(self, stage: ModelStage) -> tuple[int, int]:
        """How many layers are dense, and how many have experts."""
        layers, moe = stage.layers, self.config.moe
        dense = max(0, min(layers.stop, moe.first_dense) - layers.start) if moe.experts else len(layers)
        return dense, len(layers) - dense

    def _consecutive(self, size: int, stride: int = 1) -> Group:
        """`size` ranks, every stride-th."""
        return Group(size, max(1, min(size, self.machine.gpus_per_node // stride)))

    @property
    def tensor_group(self) -> Group:
        return self._consecutive(self.config.parallel.tensor)

    @property
    def expert_tensor_group(self) -> Group:
        """Among whom each expert is split."""
        return self._consecutive(self.config.parallel.expert_tensor)

    @property
    def expert_group(self) -> Group:
        """Among whom tokens are exchanged."""
        return self._consecutive(self.config.parallel.expert, self.config.parallel.expert_tensor)

    @property
    def data_group(self) -> Group:
        return self._consecutive(self.data, self.config.parallel.tensor)

    @property
    def expert_data_group(self) -> Group:
        parallel = self.config.parallel
        return self._consecutive(self.expert_data, parallel.expert * parallel.expert_tensor)

    def same_node(self, a: int, b: int) -> bool:
        """Whether pipeline ranks a and b of the first pipeline share a node."""
        apart = self.gpus // self.config.parallel.pipeline
        node = self.machine.gpus_per_node
        return a * apart // node == b * apart // node

    def nodes(self) -> str:
        """In words, which ranks share a node."""
        node, parallel = self.machine.gpus_per_node, self.config.parallel
        if self.gpus <= node:
            return "all ranks share one node"
        apart = self.gpus // parallel.pipeline
        words = [f"{-(-self.gpus // node)} nodes of {node}"]
        if parallel.pipeline > 1:
            share = node // apart
            words.append(
                f"{share} pipeline stages share a node" if share > 1 else "every pipeline hop leaves the node"
            )
        for name, group in (
            ("tensor", self.tensor_group),
            ("expert", self.expert_group),
            ("data", self.data_group),
        ):
            if group.size > 1:
                where = "within a node" if group.on_node == group.size else f"{group.on_node} a node"
                words.append(f"{name}-parallel {group.size}: {where}")
        return "; ".join(words)


def make_layout(config: Config, machine: Machine, gpus: int) -> Layout:
    """The configuration on `gpus` GPUs.

    Raises:
        ConfigError: they do not fit layout or batch.
    """
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: at least 1")
    data = check_world(config, gpus)
    return Layout(config, machine, gpus, config.training.global_batch // (config.training.micro_batch * data))
