"""A study's plan printed for people, and as plain data for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from hcmegatron.planner.machines import gib
from hcmegatron.planner.report import Output
from hcmegatron.studies import rules
from hcmegatron.studies.plan import PlannedRun, StepPlan, StudyPlan

SHAPE = ("model.", "mla.", "moe.", "connection.")  # settings that parameters depend on


def show_plan(plan: StudyPlan) -> None:
    """Print the plan: every shape once, every run or, of runs that differ in the seed alone, the first."""
    console = Output(highlight=False, width=None if Output().is_terminal else 120)

    def say(lines: Sequence[str]) -> None:
        console.print(*lines, sep="\n", soft_wrap=True, markup=False)

    groups = _groups(plan.rows)
    say(headline(plan))
    console.print(_parameters(plan, groups))
    console.print(_runs(groups, unit(plan)))
    say(_layouts(groups))
    say(_reasons(plan, groups))
    say(summary(plan))


def headline(plan: StudyPlan) -> list[str]:
    """What the study is."""
    study, on = plan.study, plan.study.machine
    axes = " x ".join(f"{axis.name} {len(axis.points)}" for axis in study.axes)
    left_out = " without exclusions" if study.exclude else ""
    branches = sum(len(row.run.branches) for row in plan.rows)
    more = f" and {branches} branches of them" if branches else ""
    return [
        *([f"{study.name}: {study.about}"] if study.about else [study.name]),
        f"{len(plan.rows)} runs ({axes}{left_out}){more}, each on {on.gpus} x {plan.machine.name}, {on.jobs} at a time",
    ]


def summary(plan: StudyPlan) -> list[str]:
    """The whole."""
    tokens = sum(row.run.tokens / row.run.steps * row.steps for row in plan.rows)
    unfit = [row for row in plan.rows if not row.fits]
    lines = [
        f"all: {short(tokens)} tokens, {plan.flops:.3g} FLOPs, {amount(plan.hours)} hours"
        + (f" ({60 * plan.hours:.1f} minutes), " if plan.hours < 1 else ", ")
        + f"{amount(plan.gpu_hours)} {unit(plan)}-hours; no time for validation, checkpoints or failures"
    ]
    if unfit:
        absent = " and have no hours in this" if any(row.hours is None for row in unfit) else ""
        lines.append(f"{len(unfit)} of {len(plan.rows)} runs do not fit{absent}")
    return lines


def unit(plan: StudyPlan) -> str:
    """What hours are of."""
    return "core" if plan.study.machine.cpu else "GPU"


def short(tokens: float) -> str:
    """196K, 39.3B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= size:
            return f"{tokens / size:.4g}{letter}"
    return f"{tokens:.0f}"


def amount(value: float | None) -> str:
    """Three digits or all before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(plan: StudyPlan) -> dict[str, Any]:
    """Every figure. Bytes and hours."""
    return {
        "study": plan.study.name,
        "file": str(plan.study.file),
        "machine": plan.machine.name,
        "gpus": plan.study.machine.gpus,
        "jobs": plan.study.machine.jobs,
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "flops": plan.flops,
        "runs": [_row(row) for row in plan.rows],
    }


def _row(row: PlannedRun) -> dict[str, Any]:
    step = row.step
    return {
        "name": row.run.name,
        **{"axes": dict(row.run.axes), "settings": dict(row.run.settings)},
        **{"tokens": row.run.tokens, "steps": row.run.steps, "steps_with_branches": row.steps},
        "branches": [vars(branch) for branch in row.run.branches],
        "parameters": dict(step.parameters),
        **{"total": step.total, "active": step.active, "flops": row.flops, "step_s": step.seconds},
        **{"peak_bytes": step.peak, "layout": step.layout, "fits": row.fits, "why_not": step.why_not},
        **{"hours": row.hours, "gpu_hours": row.gpu_hours},
    }


def _groups(rows: Sequence[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """Runs that differ in the seed alone, by what they have in common."""
    found: dict[str, list[PlannedRun]] = {}
    for row in rows:
        common = {column: value for column, value in row.run.axes.items() if column != "seed"}
        found.setdefault(repr(common), []).append(row)
    return found


def _parameters(plan: StudyPlan, groups: dict[str, list[PlannedRun]]) -> Table:
    """Of every shape."""
    table = Table(box=box.SIMPLE_HEAD, title="parameters", title_justify="left")
    for name in ("", "embedding", "body", "connections", "head", "all", "active"):
        table.add_column(name, justify="right" if name else "left")
    shown: dict[tuple[str, ...], None] = {}
    for own in groups.values():
        step = own[0].step
        figures = tuple(f"{count:,}" for count in (*by_part(step).values(), step.total, step.active))
        name = " ".join(str(value) for value in of_shape(plan, own[0]))
        shown[(name or plan.study.base, *figures)] = None
    for row in shown:
        table.add_row(*row)
    return table


def of_shape(plan: StudyPlan, row: PlannedRun) -> list[str]:
    """A run's kind, size and other settings, without what says how it is trained."""
    axes = [axis for axis in plan.study.axes if axis.name in ("kind", "size") or axis.name.startswith(SHAPE)]
    own = {axis.name: row.run.axes[axis.column] for axis in axes}
    return [
        str(v) if name in ("kind", "size") else f"{name.rpartition('.')[2]} {v}" for name, v in own.items()
    ]


def by_part(step: StepPlan) -> dict[str, int]:
    """Parameters in the four parts that conventions differ by."""
    apart = {name: step.parameters[name] for name in ("embedding", "connections", "head")}
    return {
        "embedding": apart["embedding"],
        "body": step.total - sum(apart.values()),
        "connections": apart["connections"],
        "head": apart["head"],
    }


def _runs(groups: dict[str, list[PlannedRun]], unit: str) -> Table:
    """Lengths, costs and whether they fit."""
    table = Table(box=box.SIMPLE_HEAD, title="runs, with their branches", title_justify="left")
    for name in (
        "",
        "runs",
        "lr",
        "tokens",
        "steps",
        "FLOPs",
        f"GiB a {unit}",
        "fits",
        "hours",
        f"{unit}-hours",
    ):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for own in groups.values():
        row = own[0]
        table.add_row(
            row.run.name if len(own) == 1 else _without_seed(row),
            str(len(own)),
            f"{row.run.axes['lr']:.3g}",
            short(row.run.tokens),
            f"{row.run.steps:,}" + (f" + {row.steps - row.run.steps:,}" if row.run.branches else ""),
            f"{row.flops:.2e}".replace("e+", "e"),
            "-" if row.step.peak is None else gib(row.step.peak),
            "NO" if not row.fits else "-" if row.step.peak is None else "yes",
            amount(row.hours),
            amount(row.gpu_hours),
        )
    return table


def _without_seed(row: PlannedRun) -> str:
    return row.run.name.replace(f"seed{row.run.axes['seed']}", "seed*")


def _layouts(groups: dict[str, list[PlannedRun]]) -> list[str]:
    """Each with the runs that have it, and why runs do not fit."""
    layouts: dict[str, list[str]] = {}
    unfit: dict[str, list[str]] = {}
    for own in groups.values():
        name = own[0].run.name if len(own) == 1 else _without_seed(own[0])
        if own[0].step.layout:
            layouts.setdefault(own[0].step.layout, []).append(name)
        if own[0].step.why_not:
            unfit.setdefault(own[0].step.why_not, []).append(name)
    lines = (
        [f"layout {layout}: {_some(names)}" for layout, names in layouts.items()] if len(layouts) > 1 else []
    )
    lines += [f"layout {layout}" for layout in layouts] if len(layouts) == 1 else []
    return lines + [f"does not fit: {_some(names)}: {why}" for why, names in unfit.items()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reasons(plan: StudyPlan, groups: dict[str, list[PlannedRun]]) -> list[str]:
    """What followed from rules, and how."""
    study, lines = plan.study, []
    size = study.axis("size")
    for point in size.points if size else ():
        if point.why:
            lines.append(f"size {point.label}: " + "; ".join(point.why))
    if study.learning_rate is not None:
        law = rules.LEARNING_RATES[study.learning_rate.rule]
        lines.append(f"learning rate: {law.words} ({law.source})")
    if study.batch is not None:
        law = rules.BATCHES[study.batch.rule]
        lines.append(
            f"batch: {law.words} ({law.source}), to a multiple of {study.batch.multiple_of} sequences"
        )
    if study.match is not None:
        widths = {
            f"{row[0].run.name}: {row[0].run.settings[study.match.adjust]}"
            for row in groups.values()
            if study.match.adjust in row[0].run.settings
        }
        lines.append(
            f"{study.match.adjust} as the baseline's number of parameters asks: " + _some(sorted(widths))
        )
    return lines
