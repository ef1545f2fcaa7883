"""The tables of docs/plans.md: the papers' models on 64 to 2,048 H100s, and what mHC adds at 27B.

    python -m tools.plan_tables                  prints them
    python -m tools.plan_tables --write          puts them into docs/plans.md

Layouts are those of `hcmegatron plan --search`. Token counts are the papers', as the configurations have them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hcmegatron.config import Config, load_config
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import MACHINES
from hcmegatron.planner.plan import changed_config, make_plan, overheads
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.search import search_layouts

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs/plans.md"
MODELS = ("mhc-3b", "mhc-9b", "mhc-27b", "olmo-1b", "olmo-7b")
GPUS = (64, 128, 256, 512, 1024, 2048)
MACHINE = MACHINES["h100"]
# The layout of the comparison at 27B: the schedule is the one that the paper's builds on.
PAPER = {
    "parallel.pipeline": 4,
    "parallel.expert": 8,
    "parallel.schedule": "dualpipev",
    "parallel.overlap": True,
}


def model(name: str) -> Config:
    """A configuration of configs/."""
    return load_config(ROOT / f"configs/{name}.yaml")


def row(name: str, gpus: int) -> str:
    """A model's best layout on so many GPUs, as a line of markdown."""
    found = search_layouts(model(name), MACHINE, gpus, Assumptions(), most=1).best
    if not found:
        return f"| {gpus:,} | none fits | | | | | |"
    plan = found[0].plan
    assert plan is not None
    return (
        f"| {gpus:,} | {short(plan.layout)} | {plan.seconds:.3f} | {plan.peak / 2**30:.1f} | "
        f"{plan.utilisation(plan.model_flops):.1%} | {plan.days:.2f} | {plan.gpu_hours:,.0f} |"
    )


def short(where: Layout) -> str:
    """A layout in few words."""
    parallel, recompute = where.config.parallel, where.config.recompute
    words = [parallel.schedule + (f" x{parallel.virtual}" if parallel.virtual else "")]
    sizes = (
        ("pp", parallel.pipeline),
        ("tp", parallel.tensor),
        ("ep", parallel.expert),
        ("etp", parallel.expert_tensor),
        ("dp", where.data),
    )
    words += [f"{name} {size}" for name, size in sizes if size > 1]
    words.append(f"{where.config.training.micro_batch} x {where.microbatches}")
    if recompute.mode != "none":
        words.append("+".join([recompute.mode, *recompute.modules]))
    return ", ".join(words)


def models() -> Iterator[str]:
    """Every model's table."""
    for name in MODELS:
        config = model(name)
        steps, batch, length = (
            config.training.steps,
            config.training.global_batch,
            config.data.sequence_length,
        )
        kind = f"{config.connection.kind} n = {config.connection.n}"
        tokens = f"{steps * batch * length / 1e9:,.0f} B tokens"
        yield f"**{name}**, {kind}, {tokens}: {steps:,} steps of {batch:,} x {length:,}\n"
        yield "| GPUs | layout | step, s | peak, GiB | MFU | days | GPU-hours |"
        yield "|---|---|---|---|---|---|---|"
        yield from (row(name, gpus) for gpus in GPUS)
        yield ""


def overhead_row(gpus: int, recompute: str) -> str:
    """What mHC adds to the 27B model's step."""
    config = changed_config(model("mhc-27b"), {**PAPER, "recompute.mode": recompute})
    found = overheads(make_plan(config, MACHINE, gpus))
    return f"| {gpus:,} | {recompute} | " + " | ".join(f"{case.share:.1%}" for case in found) + " |"


def overhead() -> Iterator[str]:
    """mHC beside the paper's figure."""
    yield "| GPUs | recomputation | 50% | 80% | 100% | 80%, nothing hidden |"
    yield "|---|---|---|---|---|---|"
    yield from (overhead_row(gpus, mode) for gpus in (128, 256, 512) for mode in ("none", "block"))


TABLES = {"models": models, "overhead": overhead}


def put(text: str, name: str, table: str) -> str:
    """The page's text with a table between its marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"{FILE} has no place for {name}"
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, or write them between their marks in the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.plan_tables", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/plans.md")
    options = parser.parse_args(arguments)
    text = FILE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        lines = []
        for line in make():
            print(line, flush=True)
            lines.append(line)
        text = put(text, name, "\n".join(lines).strip())
    if options.write:
        FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
