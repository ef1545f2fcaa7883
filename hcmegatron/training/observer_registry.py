"""The observers that a configuration asks for. To add one, write it (observer.py) and name it here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.platform.collective_failure import kept_on_first_rank
from hcmegatron.profiling.observer import Profiler
from hcmegatron.training.bad_steps import BadSteps
from hcmegatron.training.diagnostics import Diagnostics
from hcmegatron.training.diagnostics_files import DiagnosticsFiles
from hcmegatron.training.divergence import Divergence
from hcmegatron.training.metrics import Metrics
from hcmegatron.training.observer import Observer, Observers, Step
from hcmegatron.training.planned import Planned
from hcmegatron.training.rank_memory import RankMemory
from hcmegatron.training.recorder import Recorder
from hcmegatron.training.replica_check import ReplicaCheck
from hcmegatron.training.saving import Saving
from hcmegatron.training.stragglers import Stragglers
from hcmegatron.training.tensorboard import TensorBoard
from hcmegatron.training.weights_and_biases import WeightsAndBiases

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

Factory = Callable[["TrainingRun"], Observer]


class MeasuredRecomputation(Observer):
    """Says after the first step what recomputation has held, beside its plan."""

    def __init__(self, run: TrainingRun) -> None:
        self.recomputation, self.log = run.recomputation, run.log

    def on_step(self, step: Step) -> None:
        """Once: measuring ends with it."""
        self.log.say(*self.recomputation.measured())


class Entry(NamedTuple):
    """How an observer is made of its run, which configurations ask for it, and whether it writes (rank 0 alone)."""

    make: Factory
    asked: Callable[[Config], bool] = lambda config: True
    writes: bool = False


# In the order in which they see a step: what adds figures, what writes them, what may end the run, what saves it.
FIRST = {"metrics": Entry(Metrics)}
THEN = {
    "recorder": Entry(Recorder, writes=True),
    "diagnostics_files": Entry(DiagnosticsFiles, lambda config: config.diagnostics.every > 0, writes=True),
    "tensorboard": Entry(TensorBoard, lambda config: config.run.tensorboard, writes=True),
    "wandb": Entry(WeightsAndBiases, lambda config: config.run.wandb != "off", writes=True),
    "recomputation": Entry(MeasuredRecomputation, lambda config: config.recompute.mode == "block"),
    "planned": Entry(Planned, writes=True),
    "rank_memory": Entry(RankMemory),
    "profiler": Entry(Profiler, lambda config: bool(config.run.profile_at)),
    "stragglers": Entry(Stragglers, lambda config: config.health.slow_factor > 0),
    # behind those who read what the step's schedule has recorded, before what throws its gradients away
    "diagnostics": Entry(Diagnostics, lambda config: config.diagnostics.every > 0),
    "bad_steps": Entry(BadSteps),
    "divergence": Entry(Divergence, lambda config: config.health.diverged_after > 0),
    "replicas": Entry(
        ReplicaCheck,
        lambda config: bool(config.health.compare_parameters_every or config.health.compare_gradients_every),
    ),
    "checkpoints": Entry(Saving),
}


def build_observers(run: TrainingRun, more: Iterable[Factory] = ()) -> Observers:
    """A run's observers, in order. Collective.

    Args:
        more: of the caller; they and those of run.observers come after the metrics and before what writes them.

    Raises:
        ConfigError: run.observers names what is none; or the run directory cannot be written.
    """
    named = [named_factory(name) for name in run.config.run.observers]
    entries = [*FIRST.values(), *map(Entry, [*named, *more]), *THEN.values()]
    found = [_made(entry, run) for entry in entries if entry.asked(run.config)]
    return Observers(observer for observer in found if observer is not None)


def named_factory(name: str) -> Factory:
    """What `module:Class` names.

    Raises:
        ConfigError: there is none, or it is no Observer.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"run.observers = {name}: {error}; write module:Class, where the module can be imported"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Observer)):
        raise ConfigError(
            f"run.observers = {name}: is no Observer; make it a class that inherits from Observer"
        )
    return found


def _made(entry: Entry, run: TrainingRun) -> Observer | None:
    if entry.writes:
        return kept_on_first_rank(lambda: entry.make(run))
    return entry.make(run)
