"""hcmegatron study status: where each run of a study is, and how long the whole will take."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hcmegatron.config.load import read_config
from hcmegatron.report.inputs.json_lines import JsonLines
from hcmegatron.studies.accounts import flops
from hcmegatron.studies.collect_cli import add_study, recorded
from hcmegatron.studies.record import Entry, Record
from hcmegatron.studies.state import State, has_diverged, state_of

EVERY_S = 2.0
RATE_STEPS = 50  # the newest, of which a speed is the median
COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left")


class Progress(NamedTuple):
    """A run as the table shows it.

    Attributes:
        step: done, those of its trunk counted.
        loss: of the newest step; NaN without one.
        tokens_per_s: NaN where no step says.
        flops_left: of its own steps that are not done.
        flops_per_s: as trained so far; NaN where nothing is.
    """

    entry: Entry
    state: State
    step: int
    loss: float
    tokens_per_s: float
    flops_left: float
    flops_per_s: float

    @property
    def shown_state(self) -> str:
        """In words."""
        return f"failed {self.state.failures} times" if self.state.name == "failed" else self.state.name

    @property
    def seconds_left(self) -> float:
        """NaN where nothing is known."""
        return self.flops_left / self.flops_per_s if self.flops_left else 0.0


class Watch:
    """A study that is looked at again and again. What is new in metrics.jsonl is read alone."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lines = {
            entry.name: JsonLines(record.run_dir(entry.name) / "metrics.jsonl") for entry in record.entries
        }
        self.per_token = {
            entry.name: flops(read_config(record.config_file(entry.name))[0], 1)["flops_planner"]
            for entry in record.entries
        }
        self.over: dict[str, Progress] = {}

    def look(self) -> list[Progress]:
        """Every run as it is now; those with a result as they were found."""
        states = {
            entry.name: self.over[entry.name].state
            if entry.name in self.over
            else state_of(self.record.run_dir(entry.name), entry.steps, entry.evaluation)
            for entry in self.record.entries
        }
        found = []
        for entry in self.record.entries:
            if entry.name not in self.over:
                if has_diverged(entry, states):
                    states[entry.name] = states[entry.name]._replace(name="diverged")
                now = self._progress(entry, states[entry.name])
                if now.state.has_result:
                    self.over[entry.name] = now
                found.append(now)
            else:
                found.append(self.over[entry.name])
        return found

    def _progress(self, entry: Entry, state: State) -> Progress:
        lines = self.lines[entry.name]
        lines.look()
        trained = [line for line in lines.entries if line.get("kind") == "train"]
        last = trained[-1] if trained else {}
        step = max(last.get("step", 0), state.step, entry.at_step)
        rates = [line["tokens_per_s"] for line in trained[-RATE_STEPS:] if line.get("tokens_per_s")]
        speed = statistics.median(rates) if rates else math.nan
        of_step = entry.tokens / entry.steps * self.per_token[entry.name]
        left = 0.0 if state.has_result else (entry.steps - step) * of_step
        loss = last.get("loss")
        return Progress(
            entry,
            state,
            step,
            math.nan if loss is None else float(loss),
            speed,
            left,
            speed * self.per_token[entry.name],
        )


def whole(found: Sequence[Progress]) -> str:
    """One line of all: how many are where, and how long it takes as many at a time as run now (one where none does), at
    the speed that the runs have had."""
    counts = Counter(each.state.name for each in found)
    words = ", ".join(f"{number} {name}" for name, number in counts.items())
    speeds = [each.flops_per_s for each in found if math.isfinite(each.flops_per_s)]
    left = sum(each.flops_left for each in found if each.state.name != "failed")
    if not speeds or not left:
        return f"{len(found)} runs: {words}"
    seconds = left / statistics.median(speeds) / max(1, counts["running"])
    return f"{len(found)} runs: {words}; about {_time(seconds)} left"


def cells(each: Progress) -> tuple[str, ...]:
    """A row of the table."""
    running = each.state.name == "running"
    return (
        each.entry.name,
        each.shown_state,
        f"{each.step}/{each.entry.steps}",
        "" if math.isnan(each.loss) else f"{each.loss:.4f}",
        f"{each.tokens_per_s:,.0f}" if math.isfinite(each.tokens_per_s) else "",
        _time(each.seconds_left) if running and math.isfinite(each.seconds_left) else "",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study status` takes."""
    parser.description = (
        "Where each run of a study is. On a terminal the table follows the runs until all have a result, or "
        "Ctrl-C."
    )
    add_study(parser)
    parser.add_argument("--once", action="store_true", help="on a terminal too: one table")


def main(options: argparse.Namespace) -> int:
    """The verb.

    Raises:
        ConfigError: no study has begun there.
    """
    watch = Watch(recorded(options.study, options.more))
    found = watch.look()
    if options.once or not sys.stdout.isatty():
        print(*plain(found), sep="\n")
        return 0
    with Live(_table(found), console=Console(), refresh_per_second=1, screen=False) as live:
        while not all(each.state.has_result for each in found):
            time.sleep(EVERY_S)
            found = watch.look()
            live.update(_table(found))
    return 0


def plain(found: Sequence[Progress]) -> list[str]:
    """The table as lines."""
    rows = [COLUMNS, *map(cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [*lines, whole(found)]


STYLES: Mapping[str, str] = {
    "running": "cyan",
    "finished": "green",
    "diverged": "magenta",
    "failed": "red",
    "interrupted": "yellow",
    "waiting": "dim",
}


def _table(found: Sequence[Progress]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=whole(found), caption_justify="left")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for each in found:
        table.add_row(*cells(each), style=STYLES[each.state.name])
    return table


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
