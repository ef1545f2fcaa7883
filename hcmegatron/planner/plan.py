"""A plan: a configuration on a machine, with its memory, its time, and what the whole run costs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hcmegatron.config.checks import check_config
from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.planner.counts import mlp_parameters
from hcmegatron.planner.layers import has_experts, head_widths
from hcmegatron.planner.layout import Layout, make_layout
from hcmegatron.planner.machines import Machine
from hcmegatron.planner.measured import Measured
from hcmegatron.planner.rates import Assumptions, Rates
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.step_memory import RankMemory, step_memory
from hcmegatron.planner.step_time import StepTime, step_time

DAY, HOUR = 86_400.0, 3_600.0


@dataclass(frozen=True)
class Plan:
    """What a configuration will take on so many GPUs. Bytes and seconds.

    Attributes:
        memory: of every pipeline rank; ranks that differ only in data, tensor or expert number hold the same.
        measured: costs that the time comes from; None: it is worked out from the machine's figures.
    """

    layout: Layout
    assumptions: Assumptions
    time: StepTime
    memory: tuple[RankMemory, ...]
    measured: Measured | None = None

    @property
    def config(self) -> Config:
        """What was planned."""
        return self.layout.config

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.time.total

    @cached_property
    def fullest(self) -> int:
        """The pipeline rank that holds most."""
        return max(range(len(self.memory)), key=lambda rank: self.memory[rank].peak.total())

    @cached_property
    def peak(self) -> float:
        """Bytes of the fullest rank."""
        return self.memory[self.fullest].peak.total()

    @property
    def fits(self) -> bool:
        """Whether every rank has room."""
        return self.peak <= self.layout.machine.memory

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.training.global_batch * self.config.data.sequence_length

    @cached_property
    def model_flops(self) -> float:
        """Of a step, as MFU counts them: forward and twice that, nothing computed again."""
        forward = counts.forward_flops(self.config, counts.whole_model(self.config)).total()
        return 3.0 * forward * self.tokens

    @cached_property
    def hardware_flops(self) -> float:
        """The same with what recomputation runs again."""
        return self.model_flops + recomputed_flops(self.config) * self.tokens

    def utilisation(self, flops: float) -> float:
        """A part of the data sheet's dense 16-bit peak."""
        return flops / self.seconds / self.layout.gpus / (self.layout.machine.peak_tflops * 1e12)

    @property
    def days(self) -> float:
        """Of all steps, without validation, checkpoints or interruptions."""
        return self.config.training.steps * self.seconds / DAY

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.config.training.steps * self.seconds / HOUR * self.layout.gpus


def make_plan(
    config: Config,
    machine: Machine,
    gpus: int,
    assumptions: Assumptions | None = None,
    measured: Measured | None = None,
) -> Plan:
    """Plan a configuration that `config.check` accepts.

    Args:
        measured: costs for the time; those of this configuration (Measured.require).

    Raises:
        ConfigError: the GPUs do not fit layout or batch.
    """
    where = make_layout(config, machine, gpus)
    assumptions = assumptions or Assumptions()
    operations = Operations(where, Rates(machine, assumptions, config.training.dtype))
    time = step_time(where, operations, measured)
    return Plan(where, assumptions, time, step_memory(where, operations, time.simulation), measured)


def recomputed_flops(config: Config) -> float:
    """Per token, that recomputation runs again."""
    whole = counts.whole_model(config)
    forward = counts.forward_flops(config, whole)
    recompute, model, moe = config.recompute, config.model, config.moe
    if recompute.mode == "full":
        return forward.total() - forward["head"]
    if recompute.mode == "none":
        return 0.0
    experts = sum(has_experts(config, layer) for layer in whole.layers)
    d_qk, d_v = head_widths(config)
    queries = config.mla.q_rank or model.hidden_size
    up = model.heads * (config.mla.kv_rank * (d_qk - config.mla.rope_dim + d_v) + queries * d_qk)
    of_modules = {
        "core_attn": model.layers * config.data.sequence_length * model.heads * (d_qk + d_v),
        "mla_up_proj": 2 * model.layers * up,
        "mlp": 2 * (model.layers - experts) * mlp_parameters(config, model.ffn_hidden_size),
        "shared_experts": 2 * experts * moe.shared_experts * mlp_parameters(config, moe.ffn_hidden_size),
    }
    return sum(of_modules[module] for module in recompute.modules) + (
        forward["connections"] if recompute.mode == "block" else 0
    )


def changed_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with dotted settings changed, checked.

    Raises:
        ConfigError: it contradicts itself.
    """
    other = copy.deepcopy(config)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        setattr(getattr(other, section) if section else other, leaf, value)
    check_config(other)
    return other


def without_connection(config: Config) -> Config:
    """The same model and layout with the plain residual, which has no blocks to recompute."""
    changes: dict[str, Any] = {"connection.kind": "residual"}
    if config.recompute.mode == "block":
        changes["recompute.mode"] = "selective" if config.recompute.modules else "none"
    return changed_config(config, changes)


@dataclass(frozen=True)
class Overhead:
    """What the connection adds to a step of the plain residual, under one assumption, in words."""

    assuming: str
    seconds: float
    residual: float

    @property
    def share(self) -> float:
        """Of the residual's step."""
        return self.seconds / self.residual - 1


def overheads(plan: Plan) -> list[Overhead]:
    """The connection beside the residual: kernels at 50%, 80% and 100% of copy speed, and with nothing hidden."""
    if plan.config.connection.kind == "residual" or plan.measured:  # which know this connection only
        return []
    where, bare = plan.layout, without_connection(plan.config)
    cases = [
        (f"kernels at {share:.0%} of copy speed", replace(plan.assumptions, kernels=share))
        for share in (0.5, 0.8, 1.0)
    ]
    cases.append(
        (
            f"nothing hidden, kernels at {plan.assumptions.kernels:.0%}",
            replace(plan.assumptions, hide=False),
        )
    )
    found = []
    for words, assumed in cases:
        seconds = (_seconds(config, where, assumed) for config in (plan.config, bare))
        found.append(Overhead(words, *seconds))
    return found


def _seconds(config: Config, where: Layout, assumed: Assumptions) -> float:
    again = replace(where, config=config, known={})  # of another connection: nothing that was found holds
    return step_time(again, Operations(again, Rates(where.machine, assumed, config.training.dtype))).total


def time_by_part(plan: Plan) -> Counter[str]:
    """Where the time of the busiest rank goes."""
    return plan.time.parts[plan.time.busiest]
