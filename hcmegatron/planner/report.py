"""A plan in words and tables for people, and as plain data for programs."""

from __future__ import annotations

from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from hcmegatron.connections import facts
from hcmegatron.planner import counts
from hcmegatron.planner.changes import Change
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import GIB
from hcmegatron.planner.plan import Overhead, Plan, parts
from hcmegatron.planner.step_memory import COMMUNICATOR, COMPONENTS, CONTEXT, FRAGMENTATION
from hcmegatron.planner.step_time import PARTS

TIGHT = 0.05  # of a GPU's memory: a plan with less than that left is called tight


class Output(Console):
    """rich's console, which by itself exits with 1 where a reader, like head, has seen enough."""

    def on_broken_pipe(self) -> NoReturn:
        """As every other print does; hcmegatron.cli knows what that means."""
        raise BrokenPipeError


def gib(size: float) -> str:
    """Bytes in GiB, for a table."""
    return f"{size / GIB:,.2f}"


def show(plan: Plan, overheads: list[Overhead], lighter: list[Change], price: float | None) -> None:
    """Print the plan."""
    console = Output(highlight=False, width=None if Console().is_terminal else 120)
    console.print(*headline(plan), sep="\n", soft_wrap=True, markup=False)
    console.print(_memory(plan))
    console.print(_time(plan))
    console.print(*run(plan, price), sep="\n", soft_wrap=True, markup=False)
    console.print(_counts(plan))
    if overheads:
        console.print(_overheads(plan, overheads))
    console.print(*advice(plan, lighter), sep="\n", soft_wrap=True, markup=False)
    console.print(*assumptions(plan), sep="\n", soft_wrap=True, markup=False)


def describe(where: Layout) -> str:
    """A layout in one line."""
    parallel, recompute = where.config.parallel, where.config.recompute
    words = [f"{parallel.schedule}{'+overlap' if parallel.overlap else ''}", f"pipeline {parallel.pipeline}"]
    if parallel.virtual:
        words.append(f"virtual {parallel.virtual}")
    words += [f"tensor {parallel.tensor}", f"expert {parallel.expert}", f"data {where.data}"]
    if parallel.expert_tensor > 1:
        words.insert(-1, f"expert tensor {parallel.expert_tensor}")
    modules = "" if not recompute.modules else "[" + ",".join(recompute.modules) + "]"
    words.append(f"micro-batch {where.config.training.micro_batch} x {where.microbatches}")
    return ", ".join(words) + f", recompute {recompute.mode}{modules}"


def headline(plan: Plan) -> list[str]:
    """What was planned, whether it fits, and why."""
    where, machine = plan.layout, plan.layout.machine
    total = counts.parameters(plan.config, counts.whole_model(plan.config)).total()
    active = counts.parameters(plan.config, counts.whole_model(plan.config), active=True).total()
    conn = plan.config.connection
    fullest = plan.memory[plan.fullest]
    largest = max(COMPONENTS, key=lambda name: fullest.peak[name])
    over = plan.peak - machine.memory
    verdict = (
        f"fits: {gib(plan.peak)} of {gib(machine.memory)} GiB on the fullest rank"
        + (", with little to spare" if over > -TIGHT * machine.memory else "")
        if plan.fits
        else f"DOES NOT FIT: the fullest rank needs {gib(plan.peak)} GiB, {gib(over)} more than a {machine.name} has"
    )
    return [
        f"{total:,} parameters, {active:,} active, connection {conn.kind}"
        + (f" n = {conn.n}" if "n" in facts.kind_of(conn).fields else ""),
        f"{where.gpus} x {machine.name}: {describe(where)}",
        where.nodes(),
        f"{verdict} (pipeline rank {plan.fullest}, during {fullest.action}; most of it {largest})",
    ]


def _memory(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="GiB when each pipeline rank holds most", title_justify="left")
    table.add_column("")
    ranks = range(len(plan.memory))
    shown = list(ranks) if len(ranks) <= 8 else sorted({0, 1, len(ranks) // 2, len(ranks) - 1, plan.fullest})
    for rank in shown:
        table.add_column(f"rank {rank}", justify="right")
    for name in COMPONENTS:
        table.add_row(name, *(gib(plan.memory[rank].peak[name]) for rank in shown))
    table.add_row("all", *(gib(plan.memory[rank].peak.total()) for rank in shown))
    table.add_row("during", *(_short(plan.memory[rank].action) for rank in shown))
    table.add_row("live chunks", *(str(plan.memory[rank].chunks) for rank in shown))
    return table


def _short(action: str) -> str:
    return action.replace("OVERLAP_F_B", "")


def _time(plan: Plan) -> Table:
    time = plan.time
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"a step on its busiest pipeline rank, {time.busiest}",
        title_justify="left",
    )
    for name in ("", "seconds", "share"):
        table.add_column(name, justify="left" if not name else "right")
    for name in PARTS:
        if parts(plan)[name] > 5e-7 * plan.seconds:
            table.add_row(name, f"{parts(plan)[name]:.4f}", f"{parts(plan)[name] / plan.seconds:.1%}")
    table.add_row("all", f"{plan.seconds:.4f}", "100.0%")
    return table


def run(plan: Plan, price: float | None) -> list[str]:
    """The rates, and what all steps cost."""
    low, high = plan.assumptions.shortest, plan.assumptions.longest
    peak = plan.layout.machine.peak_tflops
    rate = plan.tokens / plan.seconds
    per_gpu = plan.model_flops / plan.seconds / plan.layout.gpus / 1e12
    money = f", {plan.gpu_hours * price:,.0f} at {price:g} a GPU-hour" if price is not None else ""
    longest = max(plan.time.simulation.costs.stages, key=lambda stage: stage.F)
    times = (("F", longest.F), ("B", longest.B), ("I", longest.I), ("W", longest.W), ("FB", longest.FB))
    took = f"{plan.seconds:.3f} s ({low * plan.seconds:.2f} to {high * plan.seconds:.2f})"
    days = f"{plan.days:.2f} days ({low * plan.days:.2f} to {high * plan.days:.2f})"
    return [
        "one micro-batch in the longest stage: " + ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in times),
        f"step {took}; {rate:,.0f} tokens/s, {rate / plan.layout.gpus:,.0f} a GPU; {per_gpu:.0f} TFLOP/s a GPU",
        f"MFU {plan.utilisation(plan.model_flops):.1%}, with recomputation {plan.utilisation(plan.hardware_flops):.1%}"
        f" (of {peak:g} TFLOP/s, dense bf16)",
        f"{plan.config.training.steps:,} steps, {plan.tokens * plan.config.training.steps / 1e9:,.1f} B tokens: "
        f"{days}, {plan.gpu_hours:,.0f} GPU-hours{money}",
    ]


def _counts(plan: Plan) -> Table:
    whole = counts.whole_model(plan.config)
    total, active = (counts.parameters(plan.config, whole, active) for active in (False, True))
    flops = counts.forward_flops(plan.config, whole)
    on_rank = [counts.held_parameters(plan.layout, rank) for rank in range(len(plan.memory))]
    table = Table(box=box.SIMPLE_HEAD, title="parameters, and forward FLOPs a token", title_justify="left")
    for name in ("", "all", "active", "most on a rank", "MFLOP"):
        table.add_column(name, justify="left" if not name else "right")
    for name in counts.CLASSES:
        if total[name] or flops[name]:
            most = max(rank[name] for rank in on_rank)
            table.add_row(
                name, f"{total[name]:,}", f"{active[name]:,}", f"{most:,}", f"{flops[name] / 1e6:,.1f}"
            )
    most = max(rank.total() for rank in on_rank)
    table.add_row(
        "all", f"{total.total():,}", f"{active.total():,}", f"{most:,}", f"{flops.total() / 1e6:,.1f}"
    )
    return table


def _overheads(plan: Plan, overheads: list[Overhead]) -> Table:
    conn = plan.config.connection
    printed = facts.kind_of(conn).paper_overhead(conn)
    known = "" if printed is None else f" (the paper's 27B: {printed:.1%})"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"what {conn.kind} adds to the plain residual's step{known}",
        title_justify="left",
    )
    for name in ("assuming", "step, s", "residual, s", "adds"):
        table.add_column(name, justify="left" if name == "assuming" else "right")
    for row in overheads:
        table.add_row(row.assuming, f"{row.seconds:.4f}", f"{row.residual:.4f}", f"{row.share:.1%}")
    return table


def advice(plan: Plan, lighter: list[Change]) -> list[str]:
    """What would lower the peak."""
    if plan.measured:
        return []  # other settings were not measured
    if not lighter:
        return [
            "no change of one or two settings makes it fit; use more GPUs, or --search"
            if not plan.fits
            else "no single change lowers the peak"
        ]
    what = "lower the peak" if plan.fits else "make it fit"
    return [f"the quickest changes that {what}:"] + [
        f"  {change}: {gib(change.plan.peak)} GiB, step {change.plan.seconds:.3f} s "
        f"({change.plan.seconds / plan.seconds - 1:+.1%})"
        for change in lighter
    ]


def assumptions(plan: Plan) -> list[str]:
    """What nobody has measured, in words."""
    assumed, machine = plan.assumptions, plan.layout.machine
    if plan.measured:
        return [
            f"times measured on {machine.name}, {plan.measured.ranks} ranks at once, {plan.measured.date}; TFLOP/s are "
            f"of a matmul there; no time for validation, checkpoints or failures; assumed: {_allowances()}"
        ]
    return [
        f"assumed, not measured: matmuls up to {machine.matmul_tflops:g} TFLOP/s by size, connections' kernels at "
        f"{assumed.kernels:.0%} and elementwise ones at {assumed.elementwise:.0%} of {machine.copy_tbs:g} TB/s, "
        f"links at {machine.link_share:.0%} of {machine.nvlink_gbs:g} and {machine.network_gbs:g} GB/s, the fullest "
        f"rank's tokens {assumed.imbalance:g} times the mean, {_allowances()}; no time for validation, checkpoints, "
        "failures or the host"
    ]


def _allowances() -> str:
    return (
        f"context {gib(CONTEXT)} GiB, {gib(COMMUNICATOR)} GiB a communicator, fragmentation {FRAGMENTATION:.0%} of "
        "what moves"
    )


def as_json(
    plan: Plan, overheads: list[Overhead], lighter: list[Change], price: float | None
) -> dict[str, Any]:
    """Every figure. Bytes and seconds."""
    whole = counts.whole_model(plan.config)
    where = plan.layout
    return {
        "machine": vars(where.machine),
        "gpus": where.gpus,
        "layout": describe(where),
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
