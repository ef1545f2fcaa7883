"""Changes of settings that lower a plan's peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.planner.layout import make_layout
from hcmegatron.planner.machines import Machine
from hcmegatron.planner.plan import Plan, changed_config, make_plan
from hcmegatron.planner.rates import Rates
from hcmegatron.planner.search import least_peak
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.step_memory import least_bytes


def moves(config: Config, machine: Machine) -> list[dict[str, Any]]:
    """Single changes that may lower the peak."""
    parallel, found = config.parallel, []
    if config.recompute.mode == "none":
        found.append({"recompute.mode": "selective", "recompute.modules": ["mla_up_proj"]})
        found.append({"recompute.mode": "block"})
        found.append({"recompute.mode": "block", "recompute.modules": ["mla_up_proj"]})
    if config.recompute.mode != "full":
        found.append({"recompute.mode": "full", "recompute.modules": []})
    for factor in (2, 4, 8):
        found.append({"parallel.expert": parallel.expert * factor})
        own = {"parallel.schedule": "1f1b"} if parallel.schedule == "megatron_1f1b" else {}
        found.append({"parallel.pipeline": parallel.pipeline * factor, **own})
        if parallel.tensor * factor <= machine.gpus_per_node:
            found.append({"parallel.tensor": parallel.tensor * factor, "parallel.sequence": True})
    if config.training.micro_batch > 1:
        found.append({"training.micro_batch": config.training.micro_batch // 2})
    if parallel.distributed_optimizer is False:
        found.append({"parallel.distributed_optimizer": True})
    if parallel.schedule == "dualpipe":
        found.append({"parallel.schedule": "dualpipev"})
    if parallel.schedule not in ("1f1b", "megatron_1f1b"):
        found.append({"parallel.schedule": "1f1b", "parallel.virtual": None, "parallel.overlap": False})
    return found


@dataclass(frozen=True)
class LighterPlan:
    """Settings changed, and the plan with them."""

    changes: dict[str, Any]
    plan: Plan

    def __str__(self) -> str:
        def word(value: Any) -> str:
            if isinstance(value, list):
                return "[" + ",".join(map(str, value)) + "]"
            return (
                {True: "true", False: "false", None: "null"}.get(value, value)
                if not isinstance(value, int) or isinstance(value, bool)
                else str(value)
            )

        return " ".join(f"--{key}={word(value)}" for key, value in self.changes.items())


def lighter_plans(plan: Plan, most: int = 3) -> list[LighterPlan]:
    """The quickest changes that lower the peak: below the machine's memory where the plan does not fit, and then of two
    settings together where those of one are too few."""
    room = min(plan.layout.machine.memory, 0.95 * plan.peak)
    single = moves(plan.config, plan.layout.machine)
    found = _fitting(plan, single, room)
    if len(found) < most and not plan.fits:
        pairs = [{**a, **b} for i, a in enumerate(single) for b in single[i + 1 :] if not a.keys() & b.keys()]
        found += _fitting(plan, pairs, room)
    return sorted(found, key=lambda change: change.plan.seconds)[:most]


def _fitting(plan: Plan, candidates: list[dict[str, Any]], room: float) -> list[LighterPlan]:
    found = []
    for changes in candidates:
        try:
            config = changed_config(plan.config, changes)
            where = make_layout(config, plan.layout.machine, plan.layout.gpus)
            rates = Rates(where.machine, plan.assumptions, config.training.dtype)
            if least_bytes(where) > room or least_peak(where, Operations(where, rates)) > room:
                continue
            other = make_plan(config, plan.layout.machine, plan.layout.gpus, plan.assumptions)
        except ConfigError:
            continue  # this change does not go with the configuration; others may
        if other.peak <= room:
            found.append(LighterPlan(changes, other))
    return found
