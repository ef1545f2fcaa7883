"""The verb `plan`: what a configuration takes on a machine, before anything is started. No torch."""

from __future__ import annotations

import argparse
import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hcmegatron.config import Config, ConfigError, check_config, read_config
from hcmegatron.config.types import leaves
from hcmegatron.planner.changes import lighter_plans
from hcmegatron.planner.machines import MACHINES, find_machine
from hcmegatron.planner.measured import Measured
from hcmegatron.planner.measured import read as read_costs
from hcmegatron.planner.plan import make_plan, overheads
from hcmegatron.planner.rates import Assumptions
from hcmegatron.platform import standard_streams
from schedules import output_files

COSTS = Path("costs.yaml")
Measure = Callable[
    [Config, int | None], Measured
]  # a checked configuration, and how many ranks, where that was said
OPTIONS = (
    "--gpus",
    "--gpu",
    "--price",
    "--kernel-speed",
    "--imbalance",
    "--json",
    "--picture",
    "--html",
    "--costs",
    "--measure",
    "--out",
    "--search",
    "--write",
)


class Once(argparse.Action):
    """An option that is given twice is refused, as a setting is: the first would not be heeded."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        name: str | None = None,
    ) -> None:
        """Store the value; ConfigError where there is one."""
        given = vars(namespace).setdefault("given", {})
        if self.dest in given:
            raise ConfigError(
                f"{name} {value}: {name} is given twice, as {given[self.dest]} before; give it once"
            )
        given[self.dest] = value
        setattr(namespace, self.dest, value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options; every other --word is a setting of the configuration."""
    parser.usage = (
        "hcmegatron plan FILE --gpus N | --measure [--gpu GPU] [--search] [...] [--section.key=value ...]"
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, YAML")
    parser.register("action", None, Once)  # of the options below
    parser.add_argument("--gpus", metavar="N", help="how many GPUs; of measured costs, the ranks measured")
    parser.add_argument("--gpu", metavar="GPU", help=f"{', '.join(MACHINES)} or a YAML file (default: h100)")
    parser.add_argument(
        "--measure", action="store_true", help="measure this machine's operations, and plan with them"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"with --measure: the costs (default: {COSTS})"
    )
    parser.add_argument(
        "--costs", metavar="FILE", type=Path, help="plan with what was measured (parallel.costs)"
    )
    parser.add_argument("--price", metavar="X", help="of a GPU-hour, for the cost of the run")
    parser.add_argument(
        "--kernel-speed",
        metavar="X",
        help="part of copy speed that the connections' kernels reach (default: 0.8)",
    )
    parser.add_argument(
        "--imbalance", metavar="X", help="the fullest rank's routed tokens over the mean (default: 1.1)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw memory over the step, SVG")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write all of it as a page for a browser")
    parser.add_argument("--search", action="store_true", help="find the best layouts for these GPUs")
    parser.add_argument(
        "--write", metavar="FILE", type=Path, help="with --search: the best one as a configuration"
    )


def main(options: argparse.Namespace, overrides: list[str], measure: Measure) -> int:
    """Run the verb.

    Args:
        measure: what `--measure` does, which needs torch.

    Raises:
        ConfigError: a mistake in the configuration, the machine or an option.
    """
    _refuse_unknown(overrides)
    gpus = None if options.gpus is None else _whole("--gpus", options.gpus)
    price = None if options.price is None else _number("--price", options.price, 0.0, math.inf)
    assumed = _assumptions(options)
    _refuse_together(options)
    out = (options.out or COSTS) if options.measure else None
    try:
        output_files.check(
            [path for path in (options.json, options.picture, options.html, options.write, out) if path]
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if options.costs:
        overrides = [*overrides, f"--parallel.costs={json.dumps(str(options.costs))}"]
    config, sources = read_config(options.file, overrides)
    if options.measure or config.parallel.costs:
        _refuse_beside_costs(options, config)
    elif gpus is None:
        raise ConfigError("--gpus is missing: how many GPUs there will be, or --measure this machine")
    if options.search:
        _refuse_chosen(sources)
    for warning in check_config(config, sources):
        standard_streams.tell(f"hcmegatron: warning: {warning}")
    measured, texts = None, []
    if options.measure:
        measured = measure(config, gpus)
        write([(out, measured.as_yaml())])  # before anything that might fail: it took a minute
    elif config.parallel.costs:
        measured = read_costs(config.parallel.costs)
        measured.require(config, gpus or measured.ranks, config.parallel.costs)
    if measured:
        gpus, described = measured.ranks, measured.machine
        assumed = Assumptions(longest=1.1)
    else:
        described = find_machine(options.gpu or "h100")
    if options.search:
        from hcmegatron.planner.search_report import describe_run

        return describe_run(
            config, described, gpus, assumed, options.file, write, options.write, options.json
        )
    plan = make_plan(config, described, gpus, assumed, measured)
    beside, changes = overheads(plan), [] if measured else lighter_plans(plan)
    from hcmegatron.planner.report import (
        as_json,
        show_plan,
    )  # and rich, for which a search's mistakes need not wait

    if options.json:
        figures = as_json(plan, beside, changes, price)
        texts.append((options.json, json.dumps(figures, indent=1) + "\n"))
    if options.picture:
        from hcmegatron.planner.picture import to_svg

        texts.append((options.picture, to_svg(plan)))
    if options.html:
        from hcmegatron.planner.html import to_html

        texts.append((options.html, to_html(plan, beside, changes, price, options.file.name)))
    write(texts)
    show_plan(plan, beside, changes, price)
    if out:
        print(f"costs written to {out}")
    return 0


def _assumptions(options: argparse.Namespace) -> Assumptions:
    """The usual ones, and what was said."""
    assumed = Assumptions()
    if options.kernel_speed is not None:
        assumed = Assumptions(kernels=_number("--kernel-speed", options.kernel_speed, 0.01, 1.0))
    if options.imbalance is not None:
        value = _number("--imbalance", options.imbalance, 1.0, 1000.0)
        assumed = Assumptions(kernels=assumed.kernels, imbalance=value)
    return assumed


def _refuse_together(options: argparse.Namespace) -> None:
    """ConfigError: an option without the one that it belongs to, or beside one that has no use for it."""
    if options.search and (options.picture or options.html or options.price is not None):
        raise ConfigError(
            "--search takes no --price, --picture or --html; plan the configuration that it --writes"
        )
    if options.write and not options.search:
        raise ConfigError("--write without --search: it writes what the search has chosen")
    if options.out and not options.measure:
        raise ConfigError("--out without --measure: it takes what was measured")


def write(texts: list[tuple[Path, str]]) -> None:
    """Files, all or none.

    Raises:
        ConfigError: one cannot be written.
    """
    try:
        output_files.write(texts)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _refuse_unknown(overrides: list[str]) -> None:
    """A mistyped option is no setting: settings have a section."""
    for text in overrides:
        key = text.removeprefix("--").partition("=")[0]
        if "." not in key and key not in leaves():
            near = difflib.get_close_matches(f"--{key}", OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"options are {', '.join(OPTIONS)}"
            raise ConfigError(f"{text} is neither an option of plan nor a setting; {hint}")


def _refuse_beside_costs(options: argparse.Namespace, config: Config) -> None:
    """What measured costs leave nothing to say about."""
    given = "--measure" if options.measure else f"parallel.costs = {config.parallel.costs}"
    if options.measure and config.parallel.costs:
        raise ConfigError(f"--measure beside parallel.costs = {config.parallel.costs}: give one of them")
    for name in ("search", "gpu", "kernel_speed", "imbalance"):
        if getattr(options, name):
            word = f"--{name.replace('_', '-')}"
            why = (
                "other layouts have other costs" if name == "search" else "what was measured says it already"
            )
            raise ConfigError(f"{word} beside {given}: {why}; leave one of them out")


def _refuse_chosen(sources: dict[str, str]) -> None:
    """What a search chooses and was asked for all the same, which it would not heed."""
    from hcmegatron.planner.search import CHOSEN

    for key, source in sources.items():
        if key in CHOSEN and source.startswith("--"):
            raise ConfigError(f"{source}: --search chooses {key}; leave it out, or plan without --search")


def _whole(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ConfigError(f"{name} {text}: is not a whole number") from None
    if not 1 <= value <= 10_000_000:
        raise ConfigError(f"{name} {text}: between 1 and 10 million")
    return value


def _number(name: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{name} {text}: is not a number") from None
    if not least <= value <= most or math.isinf(value):
        bound = f"finite, {least:g} or more" if math.isinf(most) else f"between {least:g} and {most:g}"
        raise ConfigError(f"{name} {text}: {bound}")
    return value
