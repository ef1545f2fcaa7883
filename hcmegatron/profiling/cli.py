"""The verb `profile`: a few steps of a configuration, and what they computed, communicated and hid. No torch here."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hcmegatron.config import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.profiling import files
from schedules import output_files

OPTIONS = ("--steps", "--out", "--json")
WORK = "hcmegatron.profiling.run:profile"
WARMUP = 2  # steps before the first that counts
MOST = 1000
Start = Callable[
    [argparse.Namespace, list[str], str], int
]  # options, settings, what a rank does -> exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options; every other --word is a setting of the configuration."""
    parser.usage = "hcmegatron profile FILE [--steps N] [--out DIR] [--json FILE] [--section.key=value ...]"
    parser.description = (
        "Run a few steps as `train` would, on this machine or under a launcher, and say what each rank computed, why "
        "it stood still, what was communicated behind computation and what was not, and what would help. DIR/profile "
        "has the figures and a trace of all ranks for Perfetto (ui.perfetto.dev); see docs/profile.md. Nothing else is "
        "kept of the steps. run.profile_at profiles steps of a training run."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, YAML")
    parser.add_argument(
        "--steps", metavar="N", default="3", help="that count, after two that warm up; default: 3"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="run directory; default: runs/profile-FILE-<date and time>"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file, too")


def main(options: argparse.Namespace, overrides: list[str], start: Start) -> int:
    """Run the verb.

    Args:
        start: starts the ranks, or is one, as for training.

    Raises:
        ConfigError: a mistake in the configuration or an option.
    """
    steps = _steps(options.steps)
    named = [word.partition("=")[0] for word in overrides]
    instead = {
        "--run.dir": "--out",
        "--run.profile_at": "--steps",
        "--checkpoint.resume": "--checkpoint.load=RUN, which leaves RUN as it is",
    }
    for name, other in instead.items():
        if name in named:
            raise ConfigError(f"{name}: of `hcmegatron profile` that is {other}")
    if options.json:
        try:
            output_files.check([options.json])
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if options.out is None:
            raise ConfigError(f"--json {options.json}: without --out; say where the profile goes")
    at = list(range(WARMUP + 1, WARMUP + steps + 2))  # one more, under torch.profiler
    settings = [*overrides, f"--run.profile_at={at}", "--checkpoint.resume=never"]
    if options.out is not None:
        settings.append(f"--run.dir={json.dumps(str(options.out))}")
    options.restarts = None
    status = start(options, settings, WORK)
    ranks = discover_ranks(os.environ)
    if options.json and status == 0 and (ranks is None or ranks.rank == 0):
        return _copy(options.out / files.FOLDER / files.SUMMARY, options.json)
    return status


def _copy(summary: Path, to: Path) -> int:
    """The exit status. A launcher's run that was stopped before its first profiled step has no summary."""
    try:
        shutil.copyfile(summary, to)
    except OSError as error:
        what = "there is no such profile" if not summary.exists() else error.strerror
        standard_streams.tell(f"hcmegatron: error: --json {to}: not written from {summary}: {what}")
        return 1
    return 0


def _steps(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST:
        raise ConfigError(f"--steps {text}: expected a whole number from 1 to {MOST}")
    return int(text)
