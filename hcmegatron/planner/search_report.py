"""`plan --search`: the best layouts as a table, why the others lose, and the best as a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from hcmegatron.config import Config, ConfigError, dump_config
from hcmegatron.planner.machines import Machine, gib
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.report import Output
from hcmegatron.planner.search import SearchResult, losers, search_layouts
from hcmegatron.planner.tables import describe_config

Write = Callable[[list[tuple[Path, str]]], None]


def describe_run(
    config: Config,
    machine: Machine,
    gpus: int,
    assumptions: Assumptions,
    file: Path,
    write: Write,
    config_file: Path | None,
    json_file: Path | None,
) -> int:
    """Search and print.

    Raises:
        ConfigError: nothing fits.
    """
    found = search_layouts(config, machine, gpus, assumptions, watch=_on_a_terminal)
    if not found.best:
        raise ConfigError(f"no layout of {file} on {gpus} x {machine.name}: {_nothing(found)}")
    texts = [(config_file, as_config(found, file))] if config_file else []
    texts += [(json_file, json.dumps(as_json(found), indent=1) + "\n")] if json_file else []
    write(texts)
    console = Output(highlight=False, width=None if Console().is_terminal else 150)
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{escape(str(file))} on {gpus} x {machine.name}", title_justify="left"
    )
    for name in ("step, s", "MFU", "GiB", "layout"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for candidate in found.best:
        plan = candidate.plan
        assert plan is not None
        mfu = plan.utilisation(plan.model_flops)
        table.add_row(
            f"{plan.seconds:.4f}", f"{mfu:.1%}", gib(plan.peak), escape(describe_config(plan.layout))
        )
    console.print(table)
    bounded = sum(candidate.outcome == "slower" for candidate in found.looked_at)
    large = sum(candidate.outcome == "memory" for candidate in found.looked_at)
    console.print(
        f"{len(found.looked_at):,} layouts: {found.simulated} simulated, {large} too large, {bounded:,} that cannot be "
        f"quicker; {found.refused.total()} refused by configuration or batch",
        "the best of every other choice:",
        *(f"  {line}" for line in losers(found)),
        "overlapped reductions in all of them; --write FILE makes the first a configuration",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _on_a_terminal(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A bar on standard error while the items are gone through, where that is a terminal; else nothing."""
    console = Console(stderr=True)
    return track(items, f"search: {what}", console=console, transient=True, disable=not console.is_terminal)


def _nothing(found: SearchResult) -> str:
    if not found.looked_at:
        key, _ = found.refused.most_common(1)[0]
        return f"none goes with {key}; change it, or use another number of GPUs"
    least = min(found.looked_at, key=lambda candidate: candidate.peak)
    over = least.peak - least.layout.machine.memory
    return (
        f"the smallest ({describe_config(least.layout)}) needs at least {gib(over)} GiB more than a GPU has; "
        "use more GPUs, a larger GPU or a smaller model"
    )


def as_config(found: SearchResult, file: Path) -> str:
    """The best layout as YAML that `train` takes."""
    plan = found.best[0].plan
    assert plan is not None
    where = plan.layout
    words = (
        f"# {file.name} for {where.gpus} x {where.machine.name}, as `hcmegatron plan --search` chose it: planned "
        f"{plan.seconds:.3f} s a step,\n# {gib(plan.peak)} GiB on the fullest rank. {describe_config(where)}.\n"
    )
    return words + dump_config(plan.config)


def as_json(found: SearchResult) -> dict[str, Any]:
    """The best, and every choice that lost."""
    return {
        "best": [
            {
                "layout": describe_config(candidate.layout),
                "step_s": candidate.seconds,
                "peak_bytes": candidate.peak,
                "parallel": vars(candidate.layout.config.parallel),
                "micro_batch": candidate.layout.config.training.micro_batch,
                "recompute": vars(candidate.layout.config.recompute),
            }
            for candidate in found.best
        ],
        "others": losers(found),
        "looked_at": len(found.looked_at),
        "simulated": found.simulated,
        "refused": dict(found.refused),
    }
