"""A run's plan on the machine that it runs on: said before the first step, kept as plan.json, and compared with what
the first steps took."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.planner import measured
from hcmegatron.planner.machines import GIB, MACHINES, Machine, of_device
from hcmegatron.planner.plan import Plan, make_plan
from hcmegatron.planner.report import as_json
from hcmegatron.planner.step_memory import MOVING, STATIC
from hcmegatron.platform import standard_streams
from hcmegatron.platform.available_memory import available_bytes
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.metrics import peak_memory_gib
from hcmegatron.training.observer import Observer, Step
from hcmegatron.training.sink import writable

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

COMPARED = (
    5  # steps after which plan and run are compared; the first, which is slower, is left out of the time
)
UNKNOWN = "h100"  # whose figures stand for a device that the planner does not know; no time is said then


def machine(ranks: RankInfo) -> Machine:
    """What this rank runs on. A GPU's memory is its own; that of a machine without any is shared out evenly."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        known = of_device(properties.name)
        name, memory = known.name if known else properties.name, properties.total_memory
    else:
        known, name, memory = None, "CPU", available_bytes() / ranks.local_world_size
    found = replace(
        known or MACHINES[UNKNOWN],
        name=name,
        memory_gib=memory / GIB,
        gpus_per_node=ranks.local_world_size,
    )
    return found if torch.cuda.is_available() else replace(found, context_gib=0.0, communicator_gib=0.0)


@dataclass(frozen=True)
class RunPlan:
    """A run's plan, and the bytes that this process held before the model was built: the program and the data."""

    plan: Plan
    before: float


def tensors(plan: Plan) -> list[float]:
    """Bytes that tensors of every pipeline rank have when it holds most."""
    return [sum(held.peak[name] for name in (*STATIC, *MOVING)) for held in plan.memory]


def plan_run(config: Config, ranks: RankInfo) -> RunPlan:
    """The plan of a run with as many ranks, with the costs of parallel.costs where they were measured. On rank 0,
    before the model is built.

    Raises:
        ConfigError: there is too little memory for it, and run.overcommit is false; else it is said.
    """
    costs = measured.fitting(config, ranks.world_size)
    plan = make_plan(config, machine(ranks), ranks.world_size, measured=costs)
    found = RunPlan(plan, 0.0 if torch.cuda.is_available() else peak_memory_gib() * GIB)
    most, room = plan.peak, plan.layout.machine.memory
    if most <= room:
        return found
    lacking = (
        f"training is planned to hold {size(most)} on a rank, which can have {size(room)}; recompute.mode = block or "
        "full keeps less, more pipeline or tensor ranks share it out (hcmegatron plan says how much)"
    )
    if not config.run.overcommit:
        raise ConfigError(f"{lacking}, or start all the same with run.overcommit = true")
    standard_streams.tell(f"hcmegatron: warning: {lacking}")
    return found


class Planned(Observer):
    """The plan beside the run, on rank 0. A time is said only of measured costs, or of a GPU that the planner knows.

    Args:
        run: its directory gets plan.json.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.log, self.last = run.log, run.config.training.steps
        assert run.plan is not None, "the plan is on rank 0, as this observer"
        self.plan, self.before = run.plan.plan, run.plan.before
        known = self.plan.measured or (
            torch.cuda.is_available() and self.plan.layout.machine.name in MACHINES
        )
        self.seconds = self.plan.seconds if known else None
        self.took: list[float] = []
        self.compared = False
        with writable(run.directory):
            (run.directory / "plan.json").write_text(
                json.dumps(as_json(self.plan, [], [], None), indent=1) + "\n"
            )
        self.log.say(self._words())

    def _words(self) -> str:
        each = [held.peak.total() for held in self.plan.memory]
        room = self.plan.layout.machine.memory
        fits = "fits" if max(each) <= room else "does not fit"
        held = " to ".join(dict.fromkeys(map(size, (min(each), max(each)))))
        words = f"planned: {fits}, {held} on a rank of {size(room)}"
        if self.seconds is None:
            return (
                f"{words}; no step time, for nothing was measured (hcmegatron plan --measure, parallel.costs)"
            )
        return f"{words}; a step takes {duration(self.seconds)}"

    def on_step(self, step: Step) -> None:
        """Compare, once."""
        if self.compared:
            return
        self.took.append(step.seconds)
        if len(self.took) == COMPARED or step.number == self.last:
            self.compared = True
            self.log.say(self._comparison())

    def _comparison(self) -> str:
        held, planned = peak_memory_gib() * GIB, self.before + tensors(self.plan)[0]
        program = f", {size(self.before)} of it the program and the data" if self.before else ""
        words = f"planned beside measured: rank 0 held {size(held)}, planned {size(planned)}{program}"
        if self.seconds is None:
            return words
        took = statistics.median(self.took[1:] or self.took)
        ratio = f"{self.seconds / took:.2f} of it"
        return f"{words}; a step took {duration(took)}, planned {duration(self.seconds)} ({ratio})"


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"
