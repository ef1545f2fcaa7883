"""What can be wrong with a job before it waits in a queue: configuration, ranks, run directory, placement, memory."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from hcmegatron.config import Config, ConfigError, check_config, check_world
from hcmegatron.config.schema import resumes
from hcmegatron.planner.machines import find_machine
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.rates import Assumptions
from launch.job import FOLDER, Job, LaunchError
from launch.progress import read_steps, step_seconds

SIGNAL_S = 300  # before the time limit, where a step's time is not known
EARLY_S = 60  # SLURM may send a signal so much earlier than it was asked to
_GIB = 2**30
_OF_QUEUES = (
    "account",
    "partition",
    "qos",
    "constraint",
    "reservation",
    "time_limit",
    "memory_per_rank_gb",
    "chain",
)
_UNHEEDED = {
    "mpi": _OF_QUEUES,
    "torchrun": (*_OF_QUEUES, "cpus_per_rank", "exclude"),
    "local": (*_OF_QUEUES, "cpus_per_rank", "exclude"),
}


def examine(config: Config, sources: dict[str, str], ranks: int, ranks_per_node: int) -> list[str]:
    """Warnings, one line each.

    Raises:
        ConfigError: settings that contradict each other, or a number of ranks that does not fit them.
    """
    warnings = check_config(config, sources)
    check_world(config, ranks)
    return [*warnings, *placement(config, ranks, ranks_per_node)]


def unheeded(launcher: str, job: Job) -> list[str]:
    """A warning that names the settings which this launcher has no use for; none where all are heeded."""
    initial = {field.name: field.default for field in dataclasses.fields(Job)}
    given = [name for name in _UNHEEDED.get(launcher, ()) if getattr(job, name) != initial[name]]
    return [f"{', '.join(given)}: launch {launcher} does not heed that"] if given else []


def placement(config: Config, ranks: int, ranks_per_node: int) -> list[str]:
    """Where tensor or expert parallel groups leave a machine. Ranks are numbered machine by machine, and these groups
    are of neighbours in number."""
    if ranks <= ranks_per_node:
        return []
    groups = {
        "parallel.tensor": (config.parallel.tensor, "all-reduces of every layer"),
        "parallel.expert": (
            config.parallel.expert * config.parallel.expert_tensor,
            "the experts' all-to-alls",
        ),
    }
    return [
        f"{key}: groups of {size} ranks do not stay inside machines of {ranks_per_node}: {what} go over the network"
        for key, (size, what) in groups.items()
        if size > 1 and ranks_per_node % size
    ]


def room(config: Config, gpu: str | None, ranks: int) -> tuple[str, bool]:
    """Whether the run has room on its GPUs, in one line; and False where it has not.

    Raises:
        ConfigError: a GPU that the planner does not know.
    """
    if gpu is None:
        return "not planned: --gpu h100 says whether the run has room on its GPUs", True
    machine = find_machine(gpu)
    plan = make_plan(config, machine, ranks, Assumptions(), None)
    held = f"{plan.peak / _GIB:.1f} of {machine.memory / _GIB:.1f} GiB on the fullest rank"
    verdict = "fits" if plan.fits else "does not fit"
    return f"planned: {verdict}, {held}; {plan.seconds:.2f} s a step", plan.fits


def choose_directory(config: Config, name: str, work_dir: Path) -> Path:
    """run.dir, or runs/<name>-<date and time>, absolute.

    Raises:
        ConfigError: it holds a run, and checkpoint.resume does not say that it is to be continued.
    """
    path = work_dir / (config.run.dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        used = any(entry.name not in (FOLDER, ".lock") for entry in path.iterdir())
    except FileNotFoundError:
        used = False
    except OSError as error:
        raise ConfigError(f"run.dir = {path} cannot be used: {error.strerror}; choose another") from None
    if used and not resumes(config):
        raise ConfigError(
            f"run.dir = {path} is already in use; choose another, or continue it with checkpoint.resume=auto"
        )
    return path


def signal_seconds(run_dir: Path) -> int | None:
    """How long before the time limit ranks are to be told: two steps and a save, as far as the run's metrics say, and
    what SLURM may be early or late. None where it has none.

    A signal is heard at the end of a step; a save in the background is waited for, then one is made. What it takes is
    taken to be no more than five steps, and half a minute at least.
    """
    seconds = step_seconds(read_steps(run_dir))
    return None if seconds is None else EARLY_S + round(2 * seconds + max(30.0, 5 * seconds))


def require_room(words: str, fits: bool, overcommit: bool) -> None:
    """LaunchError where the plan says that there is no room, and the configuration does not start all the same."""
    if not fits and not overcommit:
        raise LaunchError(f"{words}; see hcmegatron plan, or start all the same with run.overcommit=true")
