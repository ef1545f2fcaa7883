"""A plan printed for people, and as plain data for programs."""

from __future__ import annotations

from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from hcmegatron.planner import counts, tables
from hcmegatron.planner.changes import LighterPlan
from hcmegatron.planner.plan import Overhead, Plan


class Output(Console):
    """rich's console, which by itself exits with 1 where a reader, like head, has seen enough."""

    def on_broken_pipe(self) -> NoReturn:
        """As every other print does; hcmegatron.cli knows what that means."""
        raise BrokenPipeError


def show_plan(plan: Plan, overheads: list[Overhead], lighter: list[LighterPlan], price: float | None) -> None:
    """Print the plan."""
    console = Output(highlight=False, width=None if Console().is_terminal else 120)

    def say(lines: list[str]) -> None:
        console.print(*lines, sep="\n", soft_wrap=True, markup=False)

    memory, time, *rest = tables.grids(plan, overheads)
    say(tables.headline(plan))
    console.print(_table(memory))
    console.print(_table(time))
    say(tables.describe_run(plan, price))
    for grid in rest:
        console.print(_table(grid))
    say(tables.advice(plan, lighter))
    say(tables.assumptions(plan))


def _table(grid: tables.Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=grid.title, title_justify="left")
    for number, name in enumerate(grid.head):
        table.add_column(name, justify="right" if number else "left")
    for row in grid.rows:
        table.add_row(*row)
    return table


def as_json(
    plan: Plan, overheads: list[Overhead], lighter: list[LighterPlan], price: float | None
) -> dict[str, Any]:
    """Every figure. Bytes and seconds."""
    whole = counts.whole_model(plan.config)
    where = plan.layout
    return {
        "machine": vars(where.machine),
        "gpus": where.gpus,
        "layout": tables.describe_config(where),
        "nodes": where.nodes(),
        "data_parallel": where.data,
        "microbatches": where.microbatches,
        "fits": plan.fits,
        "peak_bytes": plan.peak,
        "memory_bytes": where.machine.memory,
        "fullest_rank": plan.fullest,
        "memory_per_rank": [
            {
                "peak": dict(held.peak),
                "during": held.action,
                "at_s": held.top.time,
                "live_chunks": held.chunks,
            }
            for held in plan.memory
        ],
        "parameters": dict(counts.parameters(plan.config, whole)),
        "active_parameters": dict(counts.parameters(plan.config, whole, active=True)),
        "parameters_per_stage": [dict(counts.parameters(plan.config, stage)) for stage in where.stages],
        "parameters_per_rank": [
            dict(counts.held_parameters(where, rank)) for rank in range(len(plan.memory))
        ],
        "forward_flops_per_token": dict(counts.forward_flops(plan.config, whole)),
        "step_s": plan.seconds,
        "step_range_s": [
            plan.assumptions.shortest * plan.seconds,
            plan.assumptions.longest * plan.seconds,
        ],
        "parts_per_rank_s": [dict(own) for own in plan.time.parts],
        "tokens_per_s": plan.tokens / plan.seconds,
        "mfu": plan.utilisation(plan.model_flops),
        "hfu": plan.utilisation(plan.hardware_flops),
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "price": None if price is None else plan.gpu_hours * price,
        "over_residual": [
            {"assuming": row.assuming, "step_s": row.seconds, "residual_s": row.residual, "share": row.share}
            for row in overheads
        ],
        "lighter": [
            {"changes": change.changes, "peak_bytes": change.plan.peak, "step_s": change.plan.seconds}
            for change in lighter
        ],
        "assumptions": vars(plan.assumptions),
        "measured": plan.measured and {"ranks": plan.measured.ranks, "date": plan.measured.date},
    }
