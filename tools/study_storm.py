"""A study under fire: python -m tools.study_storm [--folder DIR] [--study laptop --quick] [--kills 10]

`hcmegatron study run` is killed again and again while it trains, in turn with its whole process group and one of its
runs' processes (SIGKILL both), and continued by the same command. Wanted: nothing runs on after a kill, and in the end
the losses, gradient norms, evaluations and checkpoints of an undisturbed study, to the last bit.

DIR/whole is the undisturbed one, which another call with the same DIR uses again; DIR/storm the other one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from hcmegatron.config.errors import ConfigError
from hcmegatron.report.inputs.json_lines import read_lines
from hcmegatron.studies.collect import collect
from hcmegatron.studies.record import Record, read_record
from hcmegatron.studies.spec import read_study
from tools.kill_storm.command import Command, until
from tools.kill_storm.judge import differences

GONE_S = 10.0  # after a kill, on a machine that others use too
TIMED = ("hours", "tokens_per_s", "mfu", "memory_gib")  # of a table: what no two trainings have in common


class Wrong(Exception):
    """What must not happen has."""


def main(argv: list[str] | None = None) -> int:
    """Run; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.study_storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("bench_out/study_storm"))
    parser.add_argument("--study", default="laptop", help="its file, or a packaged one's name")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    asked, words = parser.parse_known_args(argv)
    if asked.study == "laptop" and not words:
        words = ["--quick"]
    try:
        read_study(asked.study, words)
    except ConfigError as error:
        parser.error(str(error))
    try:
        print(
            *storm(asked.folder.resolve(), [asked.study, *words], asked.kills, asked.seed, asked.jobs),
            sep="\n",
        )
    except Wrong as error:
        print(f"wrong: {error}")
        return 1
    return 0


def storm(folder: Path, words: list[str], kills: int, seed: int, jobs: int) -> list[str]:
    """A study under fire beside an undisturbed one; what happened, in words. Wrong, with what it is.

    Args:
        words: the study, and what changes it.
    """
    importlib.import_module("hcmegatron.training.run")  # once, for all commands
    folder.mkdir(parents=True, exist_ok=True)
    whole, under = folder / "whole", folder / "storm"
    began = time.monotonic()
    command = Command(_arguments(words, whole, jobs), folder / "whole.out")
    until(command.ended, float("inf"), pause=0.1)
    if command.status != 0:
        raise Wrong(f"the undisturbed study ended with {command.status}: {folder / 'whole.out'}")
    spent = time.monotonic() - began
    shutil.rmtree(under, ignore_errors=True)
    begun = time.monotonic()
    hit = Shooter(words, folder, under, steps_of(read_record(whole)), kills, random.Random(seed), jobs).run()
    took = time.monotonic() - begun
    compare(read_record(under), read_record(whole))
    runs = len(read_record(whole).entries)
    return [
        *hit,
        f"{runs} runs, {len(hit)} kills: every loss, gradient norm, evaluation and checkpoint as undisturbed",
        f"undisturbed {spent:.0f} s, under fire {took:.0f} s",
    ]


class Shooter:
    """Starts the study, kills it or one of its runs at moments spread over its steps, and lets it finish.

    Args:
        steps: of all runs together.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        under: Path,
        steps: int,
        kills: int,
        random_: random.Random,
        jobs: int,
    ) -> None:
        self.arguments, self.out, self.under = _arguments(words, under, jobs), folder / "storm.out", under
        self.random = random_
        # A kill in each of so many equal parts of the study, but for its end.
        self.moments = [(number + random_.random()) * 0.95 * steps / kills for number in range(kills)]

    def run(self) -> list[str]:
        """What was hit, in words."""
        hit: list[str] = []
        command = Command(self.arguments, self.out)
        try:
            for number, moment in enumerate(self.moments):
                if command.ended():
                    command = self._again(command)
                self._wait_for(moment, command)
                hit.append(self._shoot(command, whole=number % 2 == 0))
            if command.ended() and command.status != 0:
                command = self._again(command)
            until(command.ended, float("inf"), pause=0.1)
            if command.status != 0:
                raise Wrong(f"the study ended with {command.status}: {self.out}")
        finally:
            for process in _alive(_descendants(command.pid)):
                process.kill()
            command.clear()
        return hit

    def _wait_for(self, moment: float, command: Command) -> None:
        """Until so many steps are done, or the command has ended."""
        until(lambda: self._done() >= moment or command.ended(), float("inf"), pause=0.05)

    def _again(self, command: Command) -> Command:
        if command.status == 0:
            raise Wrong(f"it finished before its last kill: {self.out}")
        return Command(self.arguments, self.out)

    def _shoot(self, command: Command, whole: bool) -> str:
        """SIGKILL to the command's process group, or to one of its runs; that nothing runs on."""
        until(lambda: bool(_descendants(command.pid)) or command.ended(), float("inf"), pause=0.01)
        processes = _descendants(command.pid)
        done = self._done()
        if command.ended() or not processes:
            raise Wrong(f"it ended with {command.status}, and was not killed: {self.out}")
        if whole:
            os.killpg(command.pid, signal.SIGKILL)
            if not command.ends_within(GONE_S):
                raise Wrong("the command does not die")
            if not until(lambda: not _alive(processes), GONE_S):
                raise Wrong(f"processes run on after a SIGKILL of the command: {_alive(processes)}")
            return f"step {done} of all: SIGKILL to the process group of `study run`, above {len(processes)}"
        process = self.random.choice(processes)
        process.kill()
        if not until(lambda: not _alive([process]), GONE_S):
            raise Wrong(f"a process runs on after SIGKILL: {process}")
        return f"step {done} of all: SIGKILL to one of {len(processes)} runs"

    def _done(self) -> int:
        """Steps of all runs that are on record."""
        try:
            record = read_record(self.under)
        except ValueError:  # it is about to be written
            return 0
        return sum(
            max((line.get("step", 0) - entry.at_step for line in _trained(record, entry.name)), default=0)
            for entry in record.entries
        )


def steps_of(record: Record) -> int:
    """Of all runs together, branches from where they begin."""
    return sum(entry.steps - entry.at_step for entry in record.entries)


def compare(here: Record, there: Record) -> None:
    """Wrong, with the first thing that is another than in the undisturbed study."""
    if here.entries != there.entries:
        raise Wrong("the studies have other runs")
    for entry in there.entries:
        mine, its = here.run_dir(entry.name), there.run_dir(entry.name)
        if found := differences(mine, its):
            raise Wrong(f"{entry.name}: {found}")
        if _evaluations(mine) != _evaluations(its):
            raise Wrong(f"{entry.name}: evaluations {_evaluations(mine)}, undisturbed {_evaluations(its)}")
    tables = [[_lasting(row) for row in collect(record).rows] for record in (here, there)]
    if tables[0] != tables[1]:
        raise Wrong("the collected tables differ")


def _evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if line.get("kind") == "validation"]


def _lasting(row: dict[str, Any]) -> str:
    """A row without what time has to do with; as text, in which NaN is like NaN."""
    return json.dumps({name: value for name, value in row.items() if name not in TIMED})


def _arguments(words: list[str], directory: Path, jobs: int) -> list[str]:
    own = [f"--study.run_dir={directory}", "--study.retries=99"]
    return ["study", "run", *words, *own, f"--jobs={jobs}"]


def _trained(record: Record, name: str) -> list[dict[str, Any]]:
    lines = read_lines(record.run_dir(name) / "metrics.jsonl")
    return [line for line in lines if line.get("kind") == "train"]


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of them that have not ended."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
