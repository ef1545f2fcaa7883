"""The verb `doctor`: whether machines are healthy and fast, before a job trusts them."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType

from hcmegatron.config import ConfigError, check_config, read_config
from hcmegatron.planner.machines import load_machine
from hcmegatron.platform import cuda_environment, standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.ranks import RankInfo, discover_ranks
from launch.doctor.board import Lost, Terminated
from launch.doctor.examination import examine
from launch.doctor.findings import BAD_NODES, FAULTS, Report
from launch.doctor.machine_file import machine_text
from launch.doctor.report import as_json, headline, show
from launch.doctor.run_sizes import RunSizes, of_run
from launch.doctor.system import System
from launch.doctor.visit import Request
from schedules import output_files

OPTIONS = ("--ranks", "--timeout", "--json", "--write", "--exclude-bad")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options; every other --word is a setting of the configuration."""
    parser.usage = "hcmegatron doctor [FILE] [--ranks N] [--exclude-bad FILE] [--write FILE] [--json] [...]"
    parser.description = (
        "Look at this machine, or at all machines of a job: under torchrun, mpirun or srun every rank runs it. With "
        "FILE, the run's own message sizes, checkpoint size and directory are used."
    )
    parser.epilog = (
        f"Exit status: 0 no faults; {FAULTS} faults that leaving machines out does not mend; {BAD_NODES} machines to "
        "leave out (--exclude-bad); 2 a mistake in the command line or in FILE. docs/doctor.md"
    )
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="the configuration of a run, YAML")
    parser.add_argument(
        "--ranks", metavar="N", help="without a launcher: ranks on this machine (default: its GPUs)"
    )
    parser.add_argument(
        "--timeout", metavar="S", default="30", help="seconds for a rank to answer (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    parser.add_argument(
        "--write", metavar="FILE", type=Path, help="the rates, as a machine for hcmegatron plan --gpu"
    )
    parser.add_argument(
        "--exclude-bad",
        metavar="FILE",
        type=Path,
        help="machines to be left out, as SLURM's --exclude takes them",
    )


def main(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run the verb; on one rank under a launcher, else on ranks that it starts.

    Raises:
        ConfigError: a mistake in an option or in the configuration.
        Ended: faults were found, with the exit status.
    """
    limit, (directory, sizes) = _seconds(options.timeout), _run_of(options, overrides)
    count, ranks = None if options.ranks is None else _count(options.ranks), discover_ranks(os.environ)
    if ranks is not None and count is not None:
        raise ConfigError(f"--ranks {count}: {ranks.source} has started the ranks; leave it out")
    if ranks is None or ranks.rank == 0:  # who writes
        try:
            output_files.check([path for path in (options.write, options.exclude_bad) if path])
        except ValueError as error:
            raise ConfigError(str(error)) from None
    system = System()  # with the environment as the user left it
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    cuda_environment.prepare(os.environ)
    worker = partial(_rank, options, Request(directory, sizes, limit), system)
    return _start(worker, count) if ranks is None else worker(ranks)


def _run_of(options: argparse.Namespace, overrides: list[str]) -> tuple[Path, RunSizes]:
    """Where the run is going to write, and what it sends."""
    if options.file is None:
        if overrides:
            raise ConfigError(f"{overrides[0]}: a setting changes a configuration; name its FILE")
        return Path("runs"), RunSizes()
    config, sources = read_config(options.file, overrides)
    check_config(config, sources)
    return Path(config.run.dir or "runs"), of_run(config, str(options.file))


def _start(worker: partial[int], count: int | None) -> int:
    """On this machine, as many ranks as there are GPUs, or one, unless the number is given."""
    import torch

    from hcmegatron.platform.local_launch import launch_ranks

    gpus = torch.cuda.device_count()
    count = count or max(1, gpus)
    if gpus and count > gpus:
        raise ConfigError(
            f"--ranks {count}: there are {gpus} GPUs, and every rank takes one; use {gpus} or fewer"
        )
    # Where one dies, the others find it missing in some phase, within its limit, and go through the rest.
    patience = 10 * worker.args[1].limit
    status = launch_ranks(worker, count, "spawn" if gpus else "fork", patience)
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return status


def _rank(options: argparse.Namespace, request: Request, system: System, ranks: RankInfo) -> int:
    if ranks.rank:
        return _examine(options, request, system, ranks)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _examine(options, request, system, ranks)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what was found is now written down
    raise Terminated


def _examine(options: argparse.Namespace, request: Request, system: System, ranks: RankInfo) -> int:
    try:
        report = examine(request, ranks, system)
    except Lost as error:  # the verdict is rank 0's: another status would have a launcher end it
        said = f"rank {ranks.rank} of {ranks.world_size} on {system.node}: {error}"
        if ranks.rank == 0:
            raise Ended(said, FAULTS) from None
        standard_streams.tell(f"hcmegatron: {said}")
        return 0
    if ranks.rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if report is None or ranks.local_rank:
        return 0
    if options.json:
        print(json.dumps(as_json(report), indent=1))
    else:
        show(report)
    if ranks.rank == 0:
        _write(options, report)
    sys.stdout.flush()
    if report.hung:  # what hangs would hold the interpreter's end up
        standard_streams.tell(f"hcmegatron: {headline(report)}")
        os._exit(report.status)
    if report.status:
        raise Ended(headline(report), report.status)
    return 0


def _write(options: argparse.Namespace, report: Report) -> None:
    """The files that were asked for."""
    texts = []
    if options.exclude_bad:
        texts.append((options.exclude_bad, ",".join(report.bad) + "\n" * bool(report.bad)))
    try:
        output_files.write(texts)
        if options.write:
            output_files.write([(options.write, machine_text(report.figures))])
            load_machine(options.write)  # as the planner will
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 4096:
        raise ConfigError(f"--ranks {text}: is not a number of ranks; use 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 3600:
        raise ConfigError(f"--timeout {text}: is not a number of seconds from 1 to 3600")
    return seconds
