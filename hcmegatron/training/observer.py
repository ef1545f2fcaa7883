"""What watches a run. The loop tells its observers what happens and knows none of them by name.

    class LargestLoss(Observer):
        def __init__(self, run: TrainingRun) -> None:
            self.largest = 0.0

        def on_step(self, step: Step) -> None:
            self.largest = max(self.largest, step.result.loss)
            step.add("largest_loss", self.largest, "largest {:.3f}")

`run.observers: [my_module:LargestLoss]` in the configuration, or `train(..., observers=[LargestLoss])`, adds it: its
figure is then in the log line, metrics.jsonl, TensorBoard and Weights & Biases. observer_registry.py has the library's
own.

Every rank has its observers, and every hook is called on every rank, in the same order: an observer may communicate.
Those that write files are made on rank 0 alone. What a hook raises ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from hcmegatron.training.coefficient_hooks import coefficients_heard

if TYPE_CHECKING:
    from hcmegatron.data.dataset import Validation
    from hcmegatron.diagnostics.files import Observation
    from hcmegatron.training.manifest import Progress
    from hcmegatron.training.setup import TrainingRun
    from hcmegatron.training.step import StepResult


@dataclass
class Step:
    """A training step that has ended.

    Attributes:
        number: 1-based.
        learning_rate: before the groups' multipliers.
        seconds: that it took, without evaluation and checkpoints.
        metrics: figures by name, for whatever writes them.
        shown: parts of the log line.
    """

    number: int
    result: StepResult
    learning_rate: float
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, words: str = "") -> None:
        """A figure of this step; with `words`, a format such as "loss {:.4f}", it is in the log line too."""
        self.metrics[name] = value
        if words:
            self.shown.append(words.format(value))


@dataclass(frozen=True)
class Evaluation:
    """What held-out text came to after a step.

    Attributes:
        totals: of each source, nats of all its labels.
        sources: each one's text, and what needs no model.
        kind: of the text: what is looked at during training, or data.test at its end.
        sample: what the network makes of training.eval_prompt, where there is one.
    """

    step: int
    totals: list[float]
    sources: list[Validation]
    kind: Literal["validation", "test"] = "validation"
    sample: str | None = None

    @property
    def loss(self) -> float:
        """Nats a byte, of all sources together."""
        return self.together(self.totals)

    @property
    def by_source(self) -> dict[str, float]:
        """Nats a byte of each source by its name, where there are several."""
        if len(self.sources) == 1:
            return {}
        pairs = zip(self.sources, self.totals, strict=True)
        return {source.name: source.nats_per_byte(total) for source, total in pairs}

    @property
    def figures(self) -> dict[str, float]:
        """All of it by name, for whoever writes figures."""
        of_sources = {f"loss/{name}": loss for name, loss in self.by_source.items()}
        return {"loss": self.loss, "bits_per_byte": self.loss / math.log(2), **of_sources}

    def together(self, nats: Iterable[float]) -> float:
        """Nats of every source, as nats a byte of all of them."""
        return sum(nats) / sum(source.bytes for source in self.sources)


@dataclass(frozen=True)
class Coefficients:
    """A connection's coefficients for one micro-batch, detached: see connections.connection.Connection.

    Attributes:
        sublayer: counted from 0 through the whole network, attention and MLP each one.
        values: (pre, post, res), with the tokens' [s, b] in front or, where they are static, without.
    """

    step: int
    sublayer: int
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class Rewind:
    """The run has gone back to the checkpoint of `to`, for `step`; `left_out` of the data will not be met again."""

    step: Step
    to: Progress
    left_out: range


@dataclass(frozen=True)
class End:
    """How a run ended after `step` steps: at its last step, for the signal `stopped_by`, or with an error."""

    step: int
    stopped_by: str = ""
    error: BaseException | None = None


class Observer:
    """Watches a run. Made with its `TrainingRun` when model and files are there; every hook does nothing here."""

    def __init__(self, run: TrainingRun) -> None:
        """Most keep what they need of the run."""

    def on_start(self) -> None:
        """The first step is about to begin."""

    def around_step(self, step: int) -> AbstractContextManager:
        """What a step is run within, its forwards, backwards and update."""
        return nullcontext()

    def on_step(self, step: Step) -> None:
        """A step has ended. Observers see it in their order: figures that are added here reach those behind."""

    def on_eval(self, evaluation: Evaluation) -> None:
        """Held-out text, or at the end a test set, was evaluated."""

    def on_observation(self, observation: Observation) -> None:
        """The connections were looked at (docs/diagnostics.md). Figures and arrays are rank 0's alone."""

    def on_checkpoint(self, saved: Progress) -> None:
        """A checkpoint is complete."""

    def on_rewind(self, rewind: Rewind) -> None:
        """Model, optimizer and data are those of an earlier step again, whose successors will come once more."""

    def on_end(self, end: End) -> None:
        """The last call, whatever happened. After an error other ranks may not get here: do not communicate then."""

    def wants_coefficients(self, step: int) -> bool:
        """Whether to be given the connections' coefficients in this step, which costs time."""
        return False

    def on_coefficients(self, coefficients: Coefficients) -> None:
        """One connection's of one micro-batch, during the step's forward on the rank that computes it."""


class Observers(Observer):
    """Passes every hook on to several, in order. A context whose end is on_end, whatever happens within."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)
        self._step = 0
        self._over = False

    def on_start(self) -> None:
        for observer in self.observers:
            observer.on_start()

    def on_step(self, step: Step) -> None:
        self._step = step.number
        for observer in self.observers:
            observer.on_step(step)

    def on_eval(self, evaluation: Evaluation) -> None:
        for observer in self.observers:
            observer.on_eval(evaluation)

    def on_observation(self, observation: Observation) -> None:
        for observer in self.observers:
            observer.on_observation(observation)

    def on_checkpoint(self, saved: Progress) -> None:
        for observer in self.observers:
            observer.on_checkpoint(saved)

    def on_rewind(self, rewind: Rewind) -> None:
        for observer in self.observers:
            observer.on_rewind(rewind)

    def on_end(self, end: End) -> None:
        """Once, the last observer first, as contexts end: who saves tells the others before they are closed. All of
        them, although one may raise."""
        self._over = True
        with ExitStack() as calls:
            for observer in self.observers:
                calls.callback(observer.on_end, end)

    def __enter__(self) -> Observers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.on_end(End(self._step, error=error))

    @contextmanager
    def listening(self, run: TrainingRun, step: int) -> Iterator[None]:
        """Around a step: within what observers put around it, those who ask for them are given the connections'
        coefficients."""
        asking = [observer for observer in self.observers if observer.wants_coefficients(step)]

        def tell(sublayer: int, values: tuple[Tensor, ...]) -> None:
            for observer in asking:
                observer.on_coefficients(Coefficients(step, sublayer, values))

        with ExitStack() as around:
            for observer in self.observers:
                around.enter_context(observer.around_step(step))
            if asking:
                around.enter_context(coefficients_heard(run.chunks, tell))
            yield


def is_due(step: int, every: int, steps: int) -> bool:
    """Every so many steps (0: never), and at the end."""
    return step == steps or (every > 0 and step % every == 0)
