"""The verb `launch`: a configuration as a job of a launcher: shown, written into its run directory, or started."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config import Config, dump_config, read_config, smallest_world
from hcmegatron.config.schema import resumes
from hcmegatron.platform import standard_streams
from launch import array, cluster, launchers, preflight, record
from launch.job import FOLDER, Job, LaunchError
from launch.queue import require_idle
from launch.quoting import quote_all

CONFIG = f"{FOLDER}/config.yaml"
_FLAGS = ("--print", "--submit", "--snapshot", "--array", "--cluster", "--gpu")
OPTIONS = (*_FLAGS, "--no-doctor", *(cluster.option(name) for name in cluster.settings()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options; every other --word is a setting of the configuration."""
    parser.usage = (
        f"hcmegatron launch {'|'.join(launchers.LAUNCHERS)} FILE [--nodes N] [...] [--print | --submit] "
        "[--section.key=value ...]"
    )
    parser.description = (
        "Write the job's scripts into the run directory, and say how they are started; --submit starts them."
    )
    parser.epilog = "A site's settings stand in a cluster file once and for all: docs/launch.md."
    words = "; ".join(f"{name}: {about}" for name, (_, about) in launchers.LAUNCHERS.items())
    parser.add_argument("launcher", metavar="LAUNCHER", choices=launchers.LAUNCHERS, help=words)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="the configuration, YAML")
    parser.add_argument(
        "--array", action="store_true", help="slurm: every FILE a run of its own, as one array"
    )
    add_job_options(parser)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """What is asked of a job, whatever it runs."""
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--print", action="store_true", help="show what would be run, and write nothing")
    doing.add_argument("--submit", action="store_true", help="start it")
    parser.add_argument("--snapshot", action="store_true", help="run a copy of the code as it is now")
    parser.add_argument(
        "--cluster", metavar="FILE", type=Path, help=f"the site's settings (default: {cluster.DEFAULT})"
    )
    parser.add_argument("--gpu", metavar="GPU", help="plan for this GPU, and refuse what has no room on it")
    for name, (hint, _) in cluster.settings().items():
        taken = (
            {"action": argparse.BooleanOptionalAction, "default": None}
            if hint is bool  # without a value, for which FILE would be taken
            else {"action": "append", "metavar": "X"}
        )
        parser.add_argument(cluster.option(name), help=cluster.describe(name).replace("%", "%%"), **taken)


def main(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run the verb.

    Raises:
        ConfigError: a mistake in the configuration, the cluster file or an option; or a launcher that refuses.
    """
    if len(options.files) > 1 and not options.array:
        raise LaunchError(f"{options.files[1]}: a second configuration; --array makes each a run of its own")
    if options.array and options.launcher != "slurm":
        raise LaunchError(f"--array: {options.launcher} has no arrays; use launch slurm")
    site = site_settings(options)
    rows = [_row(options, file, overrides, site, number) for number, file in enumerate(options.files)]
    for row in rows:
        for said in row.said:
            standard_streams.tell(f"hcmegatron: {said}")
    launcher = launchers.find(options.launcher)
    if options.print:
        _show(launcher, rows, options.array)
        return 0
    if options.array:
        return array.launch([(row.job, row.files) for row in rows], options.snapshot, options.submit)
    (row,) = rows
    require_idle(row.job.run_dir)
    files = record.write_files(row.job.run_dir, row.files, options.snapshot)
    command = launcher.start_command(row.job, files)
    if not options.submit:
        print(f"written to {row.job.folder}; --submit starts it, as does\n    {quote_all(command)}")
        return 0
    started = launcher.start(row.job, files)
    record.write(row.job, started, command)
    print(
        f"{started.launcher} job {', '.join(started.ids)}: hcmegatron status {quote_all([str(row.job.run_dir)])}"
    )
    return 0


class Row(NamedTuple):
    """One run: its job, the job's files, and what was found."""

    job: Job
    files: dict[str, str]
    said: list[str]


def site_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the cluster file, with the options' on top."""
    path = cluster.find(options.cluster, os.environ)
    words = {name: getattr(options, name) for name in cluster.settings()}
    given = {
        name: [str(word).lower()] if isinstance(word, bool) else word
        for name, word in words.items()
        if word is not None
    }
    found, typed = cluster.read(path) if path else {}, cluster.from_options(given)
    environment = found.get("environment", {}) | typed.get("environment", {})
    return found | typed | {"environment": environment}


def _row(
    options: argparse.Namespace, file: Path, overrides: list[str], site: dict[str, Any], number: int
) -> Row:
    config, sources = read_config(file, overrides)
    if options.launcher == "local":
        site = _of_this_machine(config, site)
    if options.array:
        if config.run.dir is None:
            raise LaunchError(f"{file}: --array needs --run.dir=DIR, in which every run gets a directory")
        row = os.path.join(config.run.dir, array.row_name(options.files, number))
        config = replace(config, run=replace(config.run, dir=row))
    return planned_row(options, config, sources, file.stem, site)


def planned_row(
    options: argparse.Namespace, config: Config, sources: dict[str, str], name: str, site: dict[str, Any]
) -> Row:
    """The row of a configuration.

    Args:
        options: the launcher, and what `add_job_options` adds.
        sources: where settings were given.
        name: of the run directory, where run.dir is not set.
        site: see `site_settings`.

    Raises:
        ConfigError: the job cannot be run as it is asked for.
    """
    work_dir = Path.cwd()
    run_dir = preflight.choose_directory(config, name, work_dir)
    config = replace(config, run=replace(config.run, dir=str(run_dir)))
    if not resumes(config):  # the job may come back
        config = replace(config, checkpoint=replace(config.checkpoint, resume="auto"))
    if "signal_seconds" not in site:
        site = site | {"signal_seconds": preflight.signal_seconds(run_dir) or preflight.SIGNAL_S}
    job = Job(_command(options, run_dir, site), run_dir, work_dir, **site)
    if options.snapshot:
        job = replace(job, code=run_dir / record.SNAPSHOT)
    warnings = preflight.examine(config, sources, job.ranks, job.ranks_per_node)
    said = [f"warning: {text}" for text in (*preflight.unheeded(options.launcher, job), *warnings)]
    words, fits = preflight.room(config, options.gpu, job.ranks)
    preflight.require_room(words, fits, config.run.overcommit)
    files = launchers.find(options.launcher).render(job)
    return Row(job, {CONFIG: dump_config(config), **files}, [*said, words])


def _of_this_machine(config: Config, site: dict[str, Any]) -> dict[str, Any]:
    """The command starts as many ranks as hold the model once; LaunchError where others were asked for."""
    ranks = smallest_world(config)
    if site.get("ranks_per_node", ranks) != ranks:
        raise LaunchError(
            f"ranks_per_node = {site['ranks_per_node']}: local starts the {ranks} ranks that the layout asks for; "
            "use torchrun for more"
        )
    return {"ranks_per_node": ranks} | site


def _command(options: argparse.Namespace, run_dir: Path, site: dict[str, Any]) -> tuple[str, ...]:
    """The program of one rank: this Python's, or that of the container."""
    python = sys.executable if site.get("container") is None else "python"
    own_path = ["-P"] if options.snapshot else []  # the copy, and not what lies in the working directory
    return (python, *own_path, "-m", "hcmegatron", "train", str(run_dir / CONFIG))


def _show(launcher: launchers.Launcher, rows: list[Row], as_array: bool) -> None:
    """What would be written, and what would be run."""
    shown = array.files([row.job for row in rows]) if as_array else {}
    for row in rows:
        shown |= {str(row.job.run_dir / name): text for name, text in row.files.items()}
    for name, text in shown.items():
        print(f"# ---- {name}\n{text}")
    command = array.start_command(rows[0].job) if as_array else launcher.start_command(rows[0].job, {})
    print(f"# ---- {quote_all(command)}")
