"""hcmegatron study launch: what has no result yet, as arrays of SLURM.

Runs, and branches whose checkpoint is there, are the rows of one array. A branch that has to wait for its run is a row
of a further array, under the number of its run's row, and with SLURM's `aftercorr`: it begins when that row has ended
well, whatever the other rows do, and is taken out of the queue where its run diverges. (`afterok` would have one run
that diverges keep all branches back, and rows that wait for files would hold machines meanwhile.)
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.platform import standard_streams
from hcmegatron.studies.directory import StudyDirectory
from hcmegatron.studies.record import Entry
from hcmegatron.studies.run_cli import opened
from hcmegatron.studies.state import State, checkpoint, is_complete, state_of
from launch import array
from launch.cli import Row, add_job_options, planned_row, site_settings
from launch.job import FOLDER, LaunchError
from launch.queue import busy
from launch.quoting import quote_all


class Wave(NamedTuple):
    """The rows of an array: each one's number, and what it trains. script: relative to the run directories' parent."""

    script: str
    rows: dict[int, Entry]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study launch` takes."""
    parser.usage = (
        "hcmegatron study launch FILE [--nodes N] [...] [--print | --submit] [--study.KEY=VALUE ...]"
    )
    parser.description = (
        "Write the scripts of all runs without a result, as arrays of SLURM, a row a run; --submit starts them. Runs "
        "that wait in a queue or are going on are left alone."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the study, or the name of a packaged one")
    add_job_options(parser)
    parser.set_defaults(more=[], launcher="slurm")


def main(options: argparse.Namespace) -> int:
    """The verb.

    Raises:
        ConfigError: a mistake in the study, the cluster file or an option; or SLURM refuses.
    """
    study, found = opened(options.file, options.more)
    site = {"name": study.name} | sized(site_settings(options), study.machine.gpus)
    directory = StudyDirectory(
        study.run_dir, study.name, found, study.report.baseline, write=not options.print
    )
    for line in directory.says:
        standard_streams.tell(f"hcmegatron: {line}")
    entries = directory.record.entries
    states = {
        entry.name: state_of(directory.record.run_dir(entry.name), entry.steps, entry.evaluation)
        for entry in entries
    }
    taken = {
        name: words
        for name, state in states.items()
        if not state.has_result and (words := busy(directory.record.run_dir(name)))
    }
    ready = {
        entry.name
        for entry in entries
        if entry.trunk is None
        or states[entry.name].step
        or is_complete(checkpoint(directory.record.run_dir(entry.trunk), entry.at_step))
    }
    waves, held = planned(entries, states, taken, ready)
    for name, why in held.items():
        standard_streams.tell(f"hcmegatron: {name}: not launched: {why}")
    if not waves:
        print("nothing to launch")
        return 0
    rows = {name: _row(options, directory, name, site) for wave in waves for name in _names(wave)}
    for said, count in Counter(line for row in rows.values() for line in row.said).items():
        standard_streams.tell(f"hcmegatron: {said} ({count} runs)")
    _launch(options, waves, rows)
    return 0


def planned(
    entries: Sequence[Entry], states: dict[str, State], taken: dict[str, str], ready: set[str]
) -> tuple[list[Wave], dict[str, str]]:
    """The arrays, and what is in none of them though it has no result, with the reason. Pure.

    Args:
        taken: runs whose jobs wait or run, in words.
        ready: whose checkpoint to begin with is there, or which need none.
    """
    waves, held = [Wave(array.SCRIPT, {})], {}
    number_of: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for entry in entries:
        if states[entry.name].has_result:
            continue
        if entry.name in taken:
            held[entry.name] = taken[entry.name]
        elif entry.name in ready:
            number_of[entry.name] = len(waves[0].rows)
            waves[0].rows[number_of[entry.name]] = entry
        elif entry.trunk in number_of:
            place = waiting[entry.trunk] = waiting.get(entry.trunk, 0) + 1
            if place == len(waves):
                waves.append(Wave(f"{FOLDER}/branches-{place}.sh", {}))
            waves[place].rows[number_of[entry.trunk]] = entry
        elif entry.trunk in taken:
            held[entry.name] = f"its run {entry.trunk} has a job already; launch again when that has ended"
        else:
            held[entry.name] = (
                f"its run {entry.trunk} is over, and left no checkpoint of step {entry.at_step}"
            )
    return ([] if not waves[0].rows else waves), held


def sized(site: dict[str, Any], gpus: int) -> dict[str, Any]:
    """The site's settings with as many machines as make a run's GPUs, where none are named.

    Raises:
        LaunchError: they do not fill machines.
    """
    if "nodes" in site:
        return site
    each = site.get("ranks_per_node", 1)
    if gpus % each:
        raise LaunchError(
            f"ranks_per_node = {each}: the study's machine.gpus = {gpus} of a run do not fill machines; give --nodes"
        )
    return site | {"nodes": gpus // each}


def _names(wave: Wave) -> list[str]:
    return [entry.name for entry in wave.rows.values()]


def _row(options: argparse.Namespace, directory: StudyDirectory, name: str, site: dict[str, Any]) -> Row:
    try:
        return planned_row(options, directory.configs[name], {}, name, site)
    except LaunchError as error:
        raise LaunchError(f"{name}: {error}") from None


def _launch(options: argparse.Namespace, waves: Sequence[Wave], rows: dict[str, Row]) -> None:
    """Show, write, or write and submit the arrays."""
    number = ""
    for wave in waves:
        own = [rows[name] for name in _names(wave)]
        jobs, numbers, after = [row.job for row in own], list(wave.rows), ()
        if wave is not waves[0]:
            after = (f"--dependency=aftercorr:{number or 'ARRAY'}", "--kill-on-invalid-dep=yes")
        if options.print:
            for path, text in array.files(jobs, wave.script, numbers).items():
                print(f"# ---- {path}\n{text}")
            print(f"# ---- {quote_all(array.start_command(jobs[0], wave.script, after))}")
            continue
        array.write([(row.job, row.files) for row in own], options.snapshot, wave.script, numbers)
        if options.submit:
            started = array.start(jobs, wave.script, numbers, after)
            number = number or started
        else:
            print(
                f"written: {len(own)} rows; --submit starts them, by {jobs[0].run_dir.parent / wave.script}"
            )
