"""hcmegatron study run: the runs of a study on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from hcmegatron.config import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.platform.optional import require_extra
from hcmegatron.studies.child import preload
from hcmegatron.studies.directory import StudyDirectory
from hcmegatron.studies.expand import expand
from hcmegatron.studies.plan import plan_study
from hcmegatron.studies.runner import Runner, forget_failures
from hcmegatron.studies.slots import Slots, cores_of_machine, gpus_of_machine
from hcmegatron.studies.spec import read_study
from hcmegatron.studies.state import state_of
from hcmegatron.studies.study import Study
from hcmegatron.studies.tasks import Task, tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study run` takes."""
    parser.description = (
        "Train a study's runs as processes of this machine, each in a run directory of its own. The same command goes "
        "on after whatever ended it."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the study, or the name of a packaged one")
    parser.add_argument("--jobs", metavar="N", type=int, help="runs at a time (default: the study's)")
    parser.add_argument("--again", action="store_true", help="try runs again that were left after errors")
    parser.set_defaults(more=[])


def main(options: argparse.Namespace) -> int:
    """The verb.

    Raises:
        ConfigError: a mistake of the user's.
    """
    require_extra("hcmegatron study run")
    study, found = opened(options.file, options.more)
    jobs = study.machine.jobs if options.jobs is None else options.jobs
    cores, gpus = cores_of_machine(), gpus_of_machine()
    if not 1 <= jobs <= 1024:
        raise ConfigError(f"--jobs = {jobs}: is out of range; use 1 to 1024")
    directory = StudyDirectory(study.run_dir, study.name, found, study.report.baseline)
    for line in directory.says:
        standard_streams.tell(f"hcmegatron: {line}")
    for entry in directory.record.entries if options.again else ():
        run = directory.record.run_dir(entry.name)
        if state_of(run, entry.steps, entry.evaluation).name == "failed":
            forget_failures(run)
    preload(bool(gpus))
    return Runner(directory, Slots(jobs, cores, gpus), study.retries, _say).run()


def opened(file: Path, words: list[str]) -> tuple[Study, tuple[Task, ...]]:
    """A study and all that is to be trained for it.

    Raises:
        ConfigError: a mistake in the file, or the study takes more than its limits.
    """
    study = read_study(file, words)
    if study.limits.max_hours is not None or study.limits.max_gpu_hours is not None:
        plan_study(study).require_within_limits()
    return study, tasks(study, expand(study))


def _say(line: str) -> None:
    print(line, flush=True)
