"""What a study takes: every run on its machine, as `hcmegatron plan` plans one, and the whole. No torch.

Runs that differ in seed, length or learning rate alone share one plan of a step.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import at_home
from hcmegatron.config.schema import Config
from hcmegatron.planner import counts, measured
from hcmegatron.planner.machines import MACHINES, Machine, find_machine, gib, load_machine
from hcmegatron.planner.plan import HOUR, make_plan
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.step_memory import COMPONENTS
from hcmegatron.planner.tables import describe_config
from hcmegatron.studies.cpu import Cpu, read_cpu
from hcmegatron.studies.expand import expand
from hcmegatron.studies.runs import StudyRun
from hcmegatron.studies.study import Study


@dataclass(frozen=True)
class StepPlan:
    """A step of runs of one shape.

    Attributes:
        parameters: of the whole network, by planner.counts' classes.
        active: of these, what one token passes, without the embedding.
        flops: of training on one token: three times the forward's.
        peak: bytes of the fullest GPU; None where the run cannot be laid out.
        seconds: None where it cannot.
        layout: in words.
        why_not: what keeps it from running, in words; empty where it fits.
        start: seconds of a process beside its steps; of GPUs none is known.
    """

    parameters: Counter[counts.Class]
    active: int
    flops: float
    peak: float | None
    seconds: float | None
    layout: str
    why_not: str
    start: float = 0.0

    @property
    def total(self) -> int:
        """Parameters of all classes."""
        return self.parameters.total()


@dataclass(frozen=True)
class PlannedRun:
    """A run with its plan; hours and FLOPs are of the run and its branches."""

    run: StudyRun
    step: StepPlan
    gpus: int

    @property
    def fits(self) -> bool:
        """Whether it can be run so."""
        return not self.step.why_not

    @property
    def steps(self) -> int:
        """The run's, and those of its branches after their checkpoints."""
        return self.run.steps + sum(branch.steps - branch.at_step for branch in self.run.branches)

    @property
    def flops(self) -> float:
        """As MFU counts them, nothing computed again."""
        return self.step.flops * self.run.tokens / self.run.steps * self.steps

    @property
    def hours(self) -> float | None:
        """Without validation, checkpoints or interruptions; None where it cannot be laid out."""
        if self.step.seconds is None:
            return None
        return (self.step.seconds * self.steps + self.step.start * (1 + len(self.run.branches))) / HOUR

    @property
    def gpu_hours(self) -> float | None:
        """Of all its GPUs."""
        return None if self.hours is None else self.hours * self.gpus


@dataclass(frozen=True)
class StudyPlan:
    """All runs of a study, planned."""

    study: Study
    machine: Machine | Cpu
    rows: tuple[PlannedRun, ...]

    @property
    def gpu_hours(self) -> float:
        """Of the runs that can be laid out."""
        return sum(row.gpu_hours or 0.0 for row in self.rows)

    @property
    def flops(self) -> float:
        """Of all."""
        return sum(row.flops for row in self.rows)

    @property
    def hours(self) -> float:
        """From the first run's start to the last one's end, machine.jobs at a time, in the study's order."""
        ends = [0.0] * self.study.machine.jobs
        for row in self.rows:
            heapq.heapreplace(ends, ends[0] + (row.hours or 0.0))
        return max(ends)

    def require_within_limits(self) -> None:
        """ConfigError where the study takes more than its limits."""
        limits = self.study.limits
        for key, most, found in (
            ("limits.max_hours", limits.max_hours, self.hours),
            ("limits.max_gpu_hours", limits.max_gpu_hours, self.gpu_hours),
        ):
            if most is not None and found > most:
                raise self.study.error(
                    key, f"is less than the {found:,.4g} hours planned; raise it, or leave runs or tokens out"
                )


Chosen = Callable[[Config], Config]  # a run's configuration with another layout


def plan_study(study: Study, chosen: Chosen | None = None) -> StudyPlan:
    """Every run of a study on its machine.

    Args:
        chosen: gives each configuration the layout that it is planned with; None: its own.

    Raises:
        ConfigError: the study, its machine or a run's costs cannot be read.
    """
    machine = cpu_of(study) or machine_of(study)
    known: dict[str, StepPlan] = {}
    rows = []
    for run in expand(study):
        config = study.config(run)
        key = shape(config)
        if key not in known:
            known[key] = _step(chosen(config) if chosen else config, machine, study.machine.gpus)
        rows.append(PlannedRun(run, known[key], study.machine.gpus))
    return StudyPlan(study, machine, tuple(rows))


def cpu_of(study: Study) -> Cpu | None:
    """The study's CPU, where it is planned for one.

    Raises:
        ConfigError: its file cannot be read, or the study names GPUs beside it.
    """
    if study.machine.cpu is None:
        return None
    for key in ("machine.gpu", "machine.gpus"):
        if key in study.sources:
            raise study.error(key, "is beside machine.cpu; leave one of them out")
    return read_cpu(_beside(study, "machine.cpu", study.machine.cpu))


def machine_of(study: Study) -> Machine:
    """The study's machine: a known one, or a file beside the study's.

    Raises:
        ConfigError: it is unknown, or cannot be read.
    """
    name = study.machine.gpu
    if Path(name).suffix not in (".yaml", ".yml"):
        try:
            return find_machine(name)
        except ConfigError:
            raise study.error(
                "machine.gpu", f"is unknown; there are {', '.join(MACHINES)}, or your own FILE.yaml"
            ) from None
    return load_machine(_beside(study, "machine.gpu", name))


def _beside(study: Study, key: str, name: str) -> Path:
    """The file that a key of the study names: beside the study's, or anywhere. ConfigError where there is none."""
    try:
        path = study.file.parent / at_home(name)
    except ConfigError as error:
        raise study.error(key, str(error)) from None
    if not path.is_file():
        raise study.error(key, f"names no file ({path}); correct it")
    return path


def shape(config: Config) -> str:
    """All that a step's plan depends on."""
    training = config.training
    parts: Sequence[Any] = (
        *(config.model, config.mla, config.moe, config.connection, config.parallel, config.recompute),
        *(config.data.sequence_length, config.data.tokenizer, config.implementation, config.kernels),
        *(training.global_batch, training.micro_batch, training.dtype, config.optimizer.eps),
        *(config.optimizer.name, config.muon),
    )
    return repr(parts)


def _step(config: Config, machine: Machine | Cpu, gpus: int) -> StepPlan:
    """One step of a configuration, with what it counts where it cannot be laid out."""
    whole = counts.whole_model(config)
    active = counts.parameters(config, whole, active=True).total()
    counted: Mapping[str, Any] = {
        "parameters": counts.parameters(config, whole),
        "active": active,
        "flops": 3.0 * counts.forward_flops(config, whole).total(),
    }
    if isinstance(machine, Cpu):
        seconds = machine.seconds(config)
        return StepPlan(**counted, peak=None, seconds=seconds, layout="", why_not="", start=machine.start_s)
    costs = None
    if config.parallel.costs is not None:
        costs = measured.read(config.parallel.costs)
        costs.require(config, gpus, config.parallel.costs)
    try:
        plan = make_plan(config, machine, gpus, Assumptions(), costs)
    except ConfigError as error:
        return StepPlan(**counted, peak=None, seconds=None, layout="", why_not=str(error))
    why_not = ""
    if not plan.fits:
        fullest = plan.memory[plan.fullest]
        largest = max(COMPONENTS, key=lambda name: fullest.peak[name])
        why_not = (
            f"needs {gib(plan.peak)} GiB on pipeline rank {plan.fullest}, most of it {largest}; "
            f"a {machine.name} has {gib(machine.memory)}"
        )
    return StepPlan(
        **counted, peak=plan.peak, seconds=plan.seconds, layout=describe_config(plan.layout), why_not=why_not
    )
