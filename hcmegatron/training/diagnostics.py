"""Looks at what the connections do while a run trains, every so many steps, on held-out text; says what is odd.

An observation is a forward of as few micro-batches as hold its tokens, with the run's own schedule, as an evaluation
runs them: nothing that training depends on is changed (docs/diagnostics.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hcmegatron.connections import accounting
from hcmegatron.data.feed import MicroBatchTensors
from hcmegatron.diagnostics.ablation import Ablated, LeftOut
from hcmegatron.diagnostics.arrays import Arrays, names, of_experts, reduced, scalars
from hcmegatron.diagnostics.columns import Columns
from hcmegatron.diagnostics.experts import router_biases
from hcmegatron.diagnostics.files import Observation
from hcmegatron.diagnostics.recording import Recording
from hcmegatron.diagnostics.rules import Said, spiked, warnings
from hcmegatron.diagnostics.sample import Sample, sample
from hcmegatron.pipeline.configured_schedule import evaluated_micro_batches, first_micro_batches
from hcmegatron.platform.distributed import device
from hcmegatron.training.gradient_norms import WHOLE, gradient_norms
from hcmegatron.training.observer import Observer, Rewind, Step
from hcmegatron.training.spikes import Spikes
from hcmegatron.training.step import NOT_FINITE

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

SPIKE = 6.0  # deviations, where health.loss_spike does not say


class Diagnostics(Observer):
    """Observes every diagnostics.every steps, and steps whose loss spikes; tells the run's observers. Collective."""

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.config, self.settings = run, run.config, run.config.diagnostics
        self.text = run.validations[0] if run.validations else None
        self.names = names(self.config.model.layers)
        self.said, self.first = Said(), True
        self._forget()

    def _forget(self) -> None:
        """What belongs to steps that are gone back before."""
        limit = self.config.health.loss_spike or SPIKE
        self.spikes = Spikes(replace(self.config.health, loss_spike=limit, grad_norm_spike=0.0))
        self.spiking = False  # the loss of the last step was a spike
        self.norms: np.ndarray | None = None  # of the sub-layers' gradients, at the last observation

    def on_start(self) -> None:
        """Where held-out text was asked for and there is none, nothing can be observed."""
        if self.text is None and self.config.data.holdout > 0:
            self.run.log.say(
                "diagnostics: no text is held out, so that nothing is observed; raise data.holdout"
            )

    def on_step(self, step: Step) -> None:
        """Look at the loss; observe, where that is due."""
        self._look_at_loss(step)
        if self.text is not None and step.number % self.settings.every == 0:
            self._observe(step)

    def on_rewind(self, rewind: Rewind) -> None:
        """What was seen of later steps is seen again."""
        self._forget()

    def _look_at_loss(self, step: Step) -> None:
        result = step.result
        if result.bad == NOT_FINITE or not math.isfinite(result.loss):
            return
        why = result.bad or self.spikes.found(result.loss, result.grad_norm)
        before, self.spiking = self.spiking, bool(why)
        if not why:
            self.spikes.add(result.loss, result.grad_norm)
        if not why or before:  # said once, until the loss is back
            return
        began = time.perf_counter()
        norms = self._gradient_norms(step)[WHOLE]
        found = [spiked(self.names, result.loss, why, norms, self.norms)]
        self.run.log.say(*(f"warning: step {step.number}: {warned.message}" for warned in found))
        seconds = time.perf_counter() - began
        self._tell(Observation(step.number, 0, seconds, {"training_loss": result.loss}, found))

    def _observe(self, step: Step) -> None:
        began = time.perf_counter()
        config, groups = self.config, self.run.stepper.groups
        observed = sample(self.settings.tokens, config.data.sequence_length, len(self.text.windows))
        rows = config.training.micro_batch * groups.dp.size()
        count = -(-observed.sequences // rows)
        recording = Recording(config, groups, observed, count, device())
        needed = evaluated_micro_batches(config.parallel, count)
        firsts = first_micro_batches(config.parallel, groups.pp.rank(), needed)
        make = self._micro_batches(observed)
        with recording.listening(self.run.chunks, firsts):
            nats = self.run.stepper.evaluate(make, count)
        recording.combine()
        loss = nats / (observed.sequences * config.data.sequence_length)
        arrays = self._gradients(self._gradient_norms(step))
        if self.settings.ablation_every and step.number % self.settings.ablation_every == 0:
            arrays |= self._ablation(make, count, nats, observed)
        arrays |= self._experts(recording)
        found: list = []
        figures: dict[str, float] = {}
        if self.run.ranks.rank == 0:
            arrays = {"sublayers": np.array(self.names), **self._connections(recording), **arrays}
            found, figures = warnings(arrays), {"loss": loss, **scalars(arrays)}
        seconds = time.perf_counter() - began
        figures |= {"steps": seconds / step.seconds} if figures else {}
        self._say_cost(observed, seconds, step)
        self.run.log.say(*(f"step {step.number}: {line}" for line in self.said.lines(found)))
        self._tell(Observation(step.number, observed.tokens, seconds, figures, found, arrays))

    def _micro_batches(self, observed: Sample) -> Callable[[int], MicroBatchTensors]:
        """Held-out micro-batches in which only observed sequences have a loss."""
        training, dp = self.config.training, self.run.stepper.groups.dp

        def make(index: int) -> MicroBatchTensors:
            batch = self.text(index)
            first = (index * dp.size() + dp.rank()) * training.micro_batch
            batch["loss_mask"][max(0, observed.sequences - first) :] = 0
            return batch

        return make

    def _connections(self, recording: Recording) -> Arrays:
        """On rank 0, which has all of it."""
        conn = self.config.connection
        fractions = recording.columns.m > 1
        return reduced(
            recording.columns,
            recording.record.cpu(),
            recording.layer_similarity.cpu(),
            activates=recording.activates,
            doubly_stochastic=recording.kind.doubly_stochastic(conn),
            contraction="mean" if fractions else accounting.head_of(conn).name,
        )

    def _gradient_norms(self, step: Step) -> dict[str, np.ndarray]:
        """Before they were clipped."""
        config, run = self.config, self.run
        names = list(accounting.table(config.connection, config.model.hidden_size))
        tp = run.stepper.groups.tp
        found = gradient_norms(run.chunks, run.optimizer, tp, config.model.layers, names)
        clipped = 1.0
        if step.result.updated and config.optimizer.clip > 0:
            clipped = min(1.0, config.optimizer.clip / (step.result.grad_norm + 1e-6))
        return {name: value.numpy() / clipped for name, value in found.items()}

    def _gradients(self, norms: dict[str, np.ndarray]) -> Arrays:
        whole = norms.pop(WHOLE)
        if np.isfinite(whole).all():
            self.norms = whole
        arrays = {"sublayer_gradient_norm": whole}
        if norms:
            arrays["gradient_norm"] = np.sqrt(sum(value**2 for value in norms.values()))
        return arrays | {f"gradient_norm_{name}": value for name, value in norms.items()}

    def _ablation(
        self, make: Callable[[int], MicroBatchTensors], count: int, nats: float, observed: Sample
    ) -> Arrays:
        """Nats a token that the loss rises without each sub-layer, and without each stream where there are several."""
        n = Columns.of(self.config.connection).n
        tokens = observed.sequences * self.config.data.sequence_length

        def risen(left_out: LeftOut) -> float:
            return (self.run.stepper.evaluate(make, count, Ablated(left_out)) - nats) / tokens

        found = {"ablation_sublayer": np.array([risen(LeftOut(sublayer=s)) for s in range(len(self.names))])}
        if n > 1:
            found["ablation_stream"] = np.array([risen(LeftOut(stream=i, n=n)) for i in range(n)])
        return found

    def _experts(self, recording: Recording) -> Arrays:
        moe = self.config.moe
        biases = router_biases(self.run.chunks, self.config.model.layers, moe.experts, device())
        return of_experts(recording.expert_counts.cpu(), biases) if self.run.ranks.rank == 0 else {}

    def _say_cost(self, observed: Sample, seconds: float, step: Step) -> None:
        if self.first:
            steps = seconds / step.seconds
            share = steps / (self.settings.every + steps)
            self.run.log.say(
                f"diagnostics: an observation of {observed.tokens} tokens took {seconds:.2f} s, {steps:.2g} steps: "
                f"{share:.2%} of the time with diagnostics.every = {self.settings.every}"
            )
        self.first = False

    def _tell(self, observation: Observation) -> None:
        """Figures, warnings and arrays are rank 0's."""
        if self.run.ranks.rank != 0:
            observation = replace(observation, scalars={}, warnings=[], arrays={})
        self.run.observers.on_observation(observation)
