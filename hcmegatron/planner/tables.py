"""A plan in words and tables, as data: what the terminal and the page show."""

from __future__ import annotations

from typing import NamedTuple

from hcmegatron.connections import accounting
from hcmegatron.planner import counts
from hcmegatron.planner.changes import LighterPlan
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import Machine, gib
from hcmegatron.planner.plan import Overhead, Plan, time_by_part
from hcmegatron.planner.step_memory import COMPONENTS, FRAGMENTATION
from hcmegatron.planner.step_time import PARTS

TIGHT = 0.05  # of a GPU's memory: a plan with less than that left is called tight


class Grid(NamedTuple):
    """A table. The first column is words, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(plan: Plan, overheads: list[Overhead]) -> list[Grid]:
    """All of a plan's, in the order in which they are shown."""
    more = [over_residual(plan, overheads)] if overheads else []
    return [memory(plan), time(plan), parameters(plan), *more]


def describe_config(where: Layout) -> str:
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
        + (f" n = {conn.n}" if "n" in accounting.kind_of(conn).fields else ""),
        f"{where.gpus} x {machine.name}: {describe_config(where)}",
        where.nodes(),
        f"{verdict} (pipeline rank {plan.fullest}, during {fullest.action}; most of it {largest})",
    ]


def memory(plan: Plan) -> Grid:
    """By component, of every pipeline rank, or of some of many."""
    ranks = range(len(plan.memory))
    shown = list(ranks) if len(ranks) <= 8 else sorted({0, 1, len(ranks) // 2, len(ranks) - 1, plan.fullest})
    own = [plan.memory[rank] for rank in shown]
    rows = [(name, *(gib(held.peak[name]) for held in own)) for name in COMPONENTS]
    rows.append(("all", *(gib(held.peak.total()) for held in own)))
    rows.append(("during", *(held.action.replace("OVERLAP_F_B", "") for held in own)))
    rows.append(("live chunks", *(str(held.chunks) for held in own)))
    head = ("", *(f"rank {rank}" for rank in shown))
    return Grid("GiB when each pipeline rank holds most", head, tuple(rows))


def time(plan: Plan) -> Grid:
    """Where the time of the busiest rank goes."""
    own = time_by_part(plan)
    rows = [
        (name, f"{own[name]:.4f}", f"{own[name] / plan.seconds:.1%}")
        for name in PARTS
        if own[name] > 5e-7 * plan.seconds
    ]
    rows.append(("all", f"{plan.seconds:.4f}", "100.0%"))
    title = f"a step on its busiest pipeline rank, {plan.time.busiest}"
    return Grid(title, ("", "seconds", "share"), tuple(rows))


def describe_run(plan: Plan, price: float | None) -> list[str]:
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


def parameters(plan: Plan) -> Grid:
    """By class, with FLOPs."""
    whole = counts.whole_model(plan.config)
    total, active = (counts.parameters(plan.config, whole, active) for active in (False, True))
    flops = counts.forward_flops(plan.config, whole)
    on_rank = [counts.held_parameters(plan.layout, rank) for rank in range(len(plan.memory))]

    def row(name: str, all: int, active: int, most: int, flops: float) -> tuple[str, ...]:
        return name, f"{all:,}", f"{active:,}", f"{most:,}", f"{flops / 1e6:,.1f}"

    rows = [
        row(name, total[name], active[name], max(rank[name] for rank in on_rank), flops[name])
        for name in counts.CLASSES
        if total[name] or flops[name]
    ]
    most = max(rank.total() for rank in on_rank)
    rows.append(row("all", total.total(), active.total(), most, flops.total()))
    head = ("", "all", "active", "most on a rank", "MFLOP")
    return Grid("parameters, and forward FLOPs a token", head, tuple(rows))


def over_residual(plan: Plan, overheads: list[Overhead]) -> Grid:
    """What the connection adds."""
    conn = plan.config.connection
    printed = accounting.kind_of(conn).paper_overhead(conn)
    known = "" if printed is None else f" (the paper's 27B: {printed:.1%})"
    rows = [
        (row.assuming, f"{row.seconds:.4f}", f"{row.residual:.4f}", f"{row.share:.1%}") for row in overheads
    ]
    title = f"what {conn.kind} adds to the plain residual's step{known}"
    return Grid(title, ("assuming", "step, s", "residual, s", "adds"), tuple(rows))


def advice(plan: Plan, lighter: list[LighterPlan]) -> list[str]:
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
            f"of a matmul there; no time for validation, checkpoints or failures; assumed: {_allowances(machine)}"
        ]
    return [
        f"assumed, not measured: matmuls up to {machine.matmul_tflops:g} TFLOP/s by size, connections' kernels at "
        f"{assumed.kernels:.0%} and elementwise ones at {assumed.elementwise:.0%} of {machine.copy_tbs:g} TB/s, "
        f"links at {machine.link_share:.0%} of {machine.nvlink_gbs:g} and {machine.network_gbs:g} GB/s, the fullest "
        f"rank's tokens {assumed.imbalance:g} times the mean, {_allowances(machine)}; no time for validation, "
        "checkpoints, failures or the host"
    ]


def _allowances(machine: Machine) -> str:
    return (
        f"context {machine.context_gib:g} GiB, {machine.communicator_gib:g} GiB a communicator, "
        f"fragmentation {FRAGMENTATION:.0%} of what moves"
    )
