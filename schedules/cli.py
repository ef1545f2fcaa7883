"""The verb ``schedule``: what a pipeline schedule does, before anything runs.

``python -m schedules dualpipe --ranks 8 --microbatches 20 --compare``
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from schedules import output_files
from schedules.cost_config import PER_STAGE, SINGLE, read_cost_config
from schedules.csv_form import from_csv, to_csv
from schedules.draw import to_svg, to_text, to_trace
from schedules.generators import GENERATORS, generate
from schedules.report import ScheduleReport, make_report, report_table
from schedules.schedule import Schedule
from schedules.split_backward import split_backward

MOST_CHUNKS = 1 << 18  # ranks times micro-batches: half a minute or so of work

OUTPUTS: dict[str, tuple[str, Callable[[ScheduleReport], str]]] = {
    "svg": ("picture", lambda r: to_svg(r.simulation)),
    "trace": ("trace for ui.perfetto.dev", lambda r: to_trace(r.simulation)),
    "csv": (
        "actions, in torch.distributed.pipelining's grammar",
        lambda r: to_csv(r.simulation.schedule),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. The parser reports a mistake in one line and leaves with 2."""

    def error(message: str) -> NoReturn:
        hint = f"; see {parser.prog} --help" if message.startswith("unrecognized") else ""
        parser.exit(2, f"{parser.prog}: {message}{hint}\n")

    parser.error = error  # type: ignore[method-assign]
    known = ", ".join(GENERATORS)
    parser.add_argument("name", help=f"{known}, or a CSV file with the actions of every rank")
    parser.add_argument("--ranks", type=_count, metavar="P", help="pipeline ranks")
    parser.add_argument("--microbatches", type=_count, metavar="M", help="micro-batches of a step, in all")
    parser.add_argument(
        "--split-backward",
        action="store_true",
        help="a gradient that another rank waits for leaves before the weights' are computed "
        "(parallel.split_backward); in pairs only if nothing overlaps and --sending is early",
    )
    parser.add_argument("--compare", action="store_true", help="the other schedules in the same setting, too")
    for name, (what, _) in OUTPUTS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the {what}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure (with --compare: of all)"
    )
    costs = parser.add_argument_group(
        "costs",
        "A number is for one P-th of the model, or for one layer where --layers gives their number; "
        "a list with commas has one entry per stage.",
    )
    costs.add_argument(
        "--costs", type=Path, metavar="FILE", help="JSON or YAML with the keys below; options override"
    )
    for key, (_, meaning) in PER_STAGE.items():
        costs.add_argument(f"--{key}", type=_numbers, metavar="X", help=meaning)
    for key, meaning in SINGLE.items():
        costs.add_argument(f"--{key.replace('_', '-')}", type=_numbers, metavar="X", help=meaning)
    costs.add_argument(
        "--layers", type=_numbers, metavar="L", help="the model's layers, or a list: of each stage"
    )
    costs.add_argument(
        "--sending",
        choices=("early", "lockstep"),
        help="when outputs leave: with their half (default), or with the pair",
    )
    costs.add_argument(
        "--lead",
        type=_lead,
        metavar="X",
        help="part of F before B joins a pair, 0 to 1 (default: auto, the best)",
    )


def main(args: argparse.Namespace) -> int:
    """Run the verb; a user's mistake is one line on stderr and the result 2, with nothing written."""
    try:
        _run(args)
    except ValueError as error:
        line = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in str(error)
        )  # names of files are anything
        print(f"hcmegatron schedule: {line}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    settings = read_cost_config(args.costs) if args.costs else {}
    for key in (*PER_STAGE, *SINGLE, "layers", "sending", "lead"):
        if getattr(args, key) is not None:
            settings[key] = getattr(args, key)
    overlapped = any(settings.get(key) is not None for key in ("overlapped", "nodes"))
    pairs = overlapped or settings.get("sending") == "lockstep"

    def changed(schedule: Schedule) -> Schedule:
        return split_backward(schedule, overlapped=pairs) if args.split_backward else schedule

    schedule = changed(_schedule(args))
    main_report = make_report(schedule, settings)
    reports, unfit = [main_report], []
    if args.compare:
        for name in GENERATORS:
            if name == schedule.name:
                continue
            try:
                other = changed(generate(name, schedule.ranks, schedule.microbatches))
                reports.append(make_report(other, settings))
            except ValueError as error:
                unfit.append((name, str(error).removeprefix(f"{name}: ")))
    texts = {name: make(main_report) for name, (_, make) in OUTPUTS.items() if getattr(args, name)}
    if args.json:
        found: Any = [entry.as_json() for entry in reports] if args.compare else main_report.as_json()
        texts["json"] = json.dumps(found, indent=1) + "\n"
    output_files.write([(getattr(args, name), text) for name, text in texts.items()])
    columns = shutil.get_terminal_size((120, 24)).columns
    print(to_text(main_report.simulation, columns, colour=sys.stdout is not None and sys.stdout.isatty()))
    sized = any(settings.get(key) is not None for key in ("activation", "pending", "parameters", "hop_bytes"))
    print(report_table(reports, unfit, sized), end="")


def _schedule(args: argparse.Namespace) -> Schedule:
    if args.name.endswith(".csv"):
        try:
            text = Path(args.name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{args.name}: {getattr(error, 'strerror', None) or error}") from None
        try:
            schedule = from_csv(text, Path(args.name).stem)
        except ValueError as error:
            raise ValueError(f"{args.name}: {error}") from None
        for key in ("ranks", "microbatches"):
            wanted, found = getattr(args, key), getattr(schedule, key)
            if wanted is not None and wanted != found:
                raise ValueError(f"--{key} {wanted}: {args.name} has {found}; leave the option out")
        return schedule
    if args.name.replace("-", "_") not in GENERATORS:
        return generate(args.name, 1, 1)  # raises, with the known names
    for key in ("ranks", "microbatches"):
        if getattr(args, key) is None:
            raise ValueError(f"--{key} is missing")
    if args.ranks * args.microbatches > MOST_CHUNKS:
        raise ValueError(
            f"--ranks {args.ranks} times --microbatches {args.microbatches} is more than {MOST_CHUNKS}; "
            "the steady state repeats, so fewer micro-batches show the same"
        )
    return generate(args.name, args.ranks, args.microbatches)


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _numbers(text: str) -> float | list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor numbers with commas") from None
    return values if "," in text else values[0]


def _lead(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None
