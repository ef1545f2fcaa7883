"""One optimizer step: every micro-batch through the schedule, then an update, or none where the step is bad."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import Batches
from hcmegatron.data.feed import TENSORS, Feed, MicroBatchTensors, filled_up, unused_tensors
from hcmegatron.model.execution import Execution, running
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import (
    evaluated_micro_batches,
    first_micro_batches,
    least_micro_batches,
)
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.pipeline.unreduced import unreduced
from hcmegatron.training import loss
from hcmegatron.training.spikes import Spikes
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import Router
from schedules.runtime.gpu import GPU

NOT_FINITE = "not finite"


@dataclass(frozen=True)
class StepResult:
    """What one step was: mean loss (nats a token), gradient norm before clipping, whether weights were updated.

    Attributes:
        samples: of the data's order, from the first that the step took to its last.
        waited: seconds that this rank waited for data.
        bad: why the weights were not updated: NOT_FINITE, or what was a spike; "" where they were.
    """

    loss: float
    grad_norm: float
    updated: bool
    samples: range
    waited: float
    bad: str = ""


class Stepper:
    """Steps a model: holds what does not change from one step to the next, and the steps that spikes are judged by."""

    def __init__(
        self,
        config: Config,
        chunks: list[nn.Module],
        optimizer: ChainedOptimizer,
        schedule: Callable,
        batches: Batches,
        groups: ProcessGroupCollection,
    ) -> None:
        self.config, self.chunks, self.optimizer = config, chunks, optimizer
        self.schedule, self.batches, self.groups = schedule, batches, groups
        self.spikes = Spikes(config.health)
        # Routers whose biases Megatron moves when it finalises gradients (loss-free balancing).
        self.balanced = [
            module
            for chunk in chunks
            for module in chunk.modules()
            if isinstance(module, Router) and module.expert_bias is not None
        ]

    def gradients(self, seen: int) -> tuple[Tensor, float]:
        """Losses and finalised gradients of the step after `seen` samples.

        Returns:
            (loss.summed of this rank, seconds spent waiting for data).
        """
        self.clear()
        count = self.batches.micro_batches
        return self._run(
            partial(self.batches, seen), partial(self.batches.numbers, seen), count, forward_only=False
        )

    def own_gradients(self, seen: int) -> Tensor:
        """loss.summed of this rank for one micro-batch of the step after `seen` samples, the same on all data-parallel
        ranks; its gradients are each rank's own, not reduced. Leaves no trace but in them, which the next step clears.

        A pipeline runs as many of it as a step has: its schedule may need them. One rank runs its schedule's least.
        """
        self.clear()
        counts = [router.local_tokens_per_expert.clone() for router in self.balanced]
        batch = self.batches.of_rank(0, seen, 0)
        with unreduced(self.schedule, self.chunks):
            one_rank = self.groups.pp.size() == 1
            count = least_micro_batches(self.config.parallel) if one_rank else self.batches.micro_batches
            numbers = {"first_sample": batch["first_sample"]}
            sums, _ = self._run(lambda _: batch, lambda _: numbers, count, forward_only=False)
        for router, tokens in zip(self.balanced, counts, strict=True):
            router.local_tokens_per_expert.copy_(tokens)
        return sums

    def clear(self) -> None:
        """Ready for the gradients of another step."""
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def evaluate(
        self,
        make: Callable[[int], MicroBatchTensors],
        micro_batches: int,
        execution: Execution | None = None,
    ) -> float:
        """The loss in nats, summed over all ranks and `micro_batches` that `make` gives.

        Where the schedule needs more, the last one comes again with a loss mask of zero.

        Args:
            execution: how the layers' nodes are run; None: as in training.
        """
        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad():
            needed = evaluated_micro_batches(self.config.parallel, micro_batches)
            sums, _ = self._run(
                filled_up(make, micro_batches), lambda index: {}, needed, True, _executed(execution)
            )
        return loss.total_nats(sums, self.groups.tp.size())

    def step(self, seen: int) -> StepResult:
        """Run the step after `seen` samples."""
        biases = self._router_biases()
        sums, waited = self.gradients(seen)
        mean = loss.mean(sums)
        norm, bad = self.update(mean)
        if bad:
            self._set_router_biases(biases)
        taken = self.batches.samples(seen)
        return StepResult(mean, norm, not bad, range(taken[0], taken[-1] + 1), waited, bad)

    def update(self, mean: float) -> tuple[float, str]:
        """Clip the gradients and update the weights, where the mean loss and all gradients are finite and no spike.

        Returns:
            (gradient norm before clipping, why the weights were not updated: see StepResult.bad).
        """
        overflow = self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        finite = not overflow and math.isfinite(mean) and math.isfinite(norm)
        bad = self.spikes.found(mean, norm) if finite else NOT_FINITE
        if not bad:
            self._clip(norm)
            self.optimizer.step_with_ready_grads()
            self.spikes.add(mean, norm)
        return norm, bad

    def rehearse(self) -> list[str]:
        """One step's forward and backward before the first, to compile and to find out-of-memory early. Where our
        runtime posts receives ahead on a GPU, every kernel and communicator is used once before. Says how long that
        took.

        Leaves no trace: gradients are cleared by the next step, router biases are put back.
        """
        biases = self._router_biases()
        posts_ahead = isinstance(self.schedule, ScheduleRunner)
        said = self._warm_start() if posts_ahead and GPU.present() else []
        self.gradients(0)
        self._set_router_biases(biases)
        return said

    def _warm_start(self) -> list[str]:
        start = time.perf_counter()
        feeds = [
            self._feed(chunk, 0, partial(self.batches, 0), partial(self.batches.numbers, 0))
            for chunk in self.chunks
        ]
        self.schedule.warm_start(
            forward_step_func=loss.forward_step,
            batches=[repeat(next(feed)) for feed in feeds],
            num_microbatches=self.batches.micro_batches,
            seq_length=self.config.data.sequence_length,
            micro_batch_size=self.config.training.micro_batch,
        )
        if GPU.present():
            GPU.synchronize()
        seconds = time.perf_counter() - start
        return [
            f"warm start: every stage and communicator once, before the first message, in {seconds:.1f} s"
        ]

    def _clip(self, norm: float) -> None:
        clip = self.config.optimizer.clip
        for optimizer in self.optimizer.chained_optimizers:
            if clip > 0 and (parameters := optimizer.get_parameters()):
                clip_grad_by_total_norm_fp32(parameters, max_norm=clip, total_norm=norm)

    def _router_biases(self) -> list[Tensor]:
        return [router.expert_bias.clone() for router in self.balanced]

    def _set_router_biases(self, biases: list[Tensor]) -> None:
        for router, bias in zip(self.balanced, biases, strict=True):
            router.expert_bias.copy_(bias)

    def _feed(
        self,
        chunk: nn.Module,
        first: int,
        make: Callable[[int], MicroBatchTensors],
        numbers: Callable[[int], MicroBatchTensors],
    ) -> Feed:
        """What a chunk is fed with from micro-batch `first` on: `make`, or in the middle, where no tokens are used,
        `numbers`, which reads none."""
        masked = self.config.model.document_mask
        unused = unused_tensors(unwrap(chunk), masked)
        return Feed(numbers if unused == TENSORS else make, masked, first, unused)

    def _run(
        self,
        make: Callable[[int], MicroBatchTensors],
        numbers: Callable[[int], MicroBatchTensors],
        micro_batches: int,
        forward_only: bool,
        forward_step: Callable = loss.forward_step,
    ) -> tuple[Tensor, float]:
        firsts = first_micro_batches(self.config.parallel, self.groups.pp.rank(), micro_batches)
        feeds = [
            self._feed(chunk, first, make, numbers) for first, chunk in zip(firsts, self.chunks, strict=True)
        ]
        micro_batch_losses = self.schedule(
            forward_step_func=forward_step,
            data_iterator=feeds,
            model=self.chunks,
            num_microbatches=micro_batches,
            seq_length=self.config.data.sequence_length,
            micro_batch_size=self.config.training.micro_batch,
            forward_only=forward_only,
        )
        return loss.summed(micro_batch_losses), sum(feed.waited for feed in feeds)


def _executed(execution: Execution | None) -> Callable:
    """loss.forward_step of chunks that are run by `execution` instead of the schedule's own."""
    if execution is None:
        return loss.forward_step

    def forward_step(batches: Feed, chunk: Callable, *more: Any) -> tuple[Tensor, Callable]:
        return loss.forward_step(batches, running(chunk, execution), *more)

    return forward_step
