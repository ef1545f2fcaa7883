"""One optimizer step: every micro-batch through the schedule, then a finite update or none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import Batches
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.loss import MicroBatchTensors, forward_step, unused
from hcmegatron.pipeline.placement import evaluated_micro_batches, first_micro_batches
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import device
from hcmegatron.platform.transfer import to_device
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import Router
from schedules.runtime.gpu import GPU


@dataclass(frozen=True)
class StepResult:
    """What one step was: mean loss (nats a token), gradient norm before clipping, whether weights were updated."""

    loss: float
    grad_norm: float
    updated: bool
    samples: range  # of the data's order, which the step took
    waited: float  # seconds that this rank waited for data


class Feed(Iterator[MicroBatchTensors]):
    """Micro-batches of one step, from number `first` on, with the time spent waiting for them: on the device, what a
    chunk uses of them."""

    def __init__(
        self,
        make: Callable[[int], MicroBatchTensors],
        document_mask: bool,
        first: int = 0,
        unused: Collection[str] = (),
    ) -> None:
        self.make, self.document_mask, self.unused = make, document_mask, unused
        self.index, self.waited = first, 0.0

    def __next__(self) -> MicroBatchTensors:
        start = time.perf_counter()
        batch = {
            name: to_device(value, device()) if isinstance(value, Tensor) else value
            for name, value in self.make(self.index).items()
            if name not in self.unused
        }
        if self.document_mask:
            batch["attention_mask"] = document_mask(batch["document_ids"])
        self.index += 1
        self.waited += time.perf_counter() - start
        return batch


def document_mask(documents: Tensor) -> Tensor:
    """Hidden keys [b, 1, s, s]: later ones, and those of another document. documents: [b, s]."""
    s = documents.shape[1]
    later = torch.ones(s, s, dtype=torch.bool, device=documents.device).triu(1)
    return (later | (documents[:, :, None] != documents[:, None, :]))[:, None]


class Stepper:
    """Steps a model: holds what does not change from one step to the next."""

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
            ([summed loss, tokens] of this rank, seconds spent waiting for data).
        """
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(lambda i: self.batches(seen, i), self.batches.micro_batches, forward_only=False)

    def evaluate(self, make: Callable[[int], MicroBatchTensors], micro_batches: int) -> float:
        """The loss summed over all ranks and `micro_batches` that `make` gives.

        Where the schedule needs more, the last one comes again with a loss mask of zero.
        """

        def filled_up(index: int) -> MicroBatchTensors:
            batch = make(min(index, micro_batches - 1))
            if index >= micro_batches:
                batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
            return batch

        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad():
            needed = evaluated_micro_batches(self.config, micro_batches)
            sums, _ = self._run(filled_up, needed, forward_only=True)
        dist.all_reduce(sums)
        # tensor-parallel ranks each hold the whole loss
        return sums[0].item() / self.groups.tp.size()

    def step(self, seen: int) -> StepResult:
        """Run the step after `seen` samples."""
        biases = self._router_biases()
        sums, waited = self.gradients(seen)
        dist.all_reduce(sums)
        loss = (sums[0] / sums[1]).item()
        overflow = self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        updated = not overflow and math.isfinite(loss) and math.isfinite(norm)
        if updated:
            self._clip(norm)
            self.optimizer.step_with_ready_grads()
        else:
            self._set_router_biases(biases)
        samples = range(seen, seen + self.config.training.global_batch)
        return StepResult(loss, norm, updated, samples, waited)

    def rehearse(self) -> list[str]:
        """One step's forward and backward before the first, to compile and to find out-of-memory early. Where our
        runtime posts receives ahead, every kernel and communicator is used once before. Says how long that took.

        Leaves no trace: gradients are cleared by the next step, router biases are put back.
        """
        biases = self._router_biases()
        said = self._warm_start() if isinstance(self.schedule, ScheduleRunner) else []
        self.gradients(0)
        self._set_router_biases(biases)
        return said

    def _warm_start(self) -> list[str]:
        start = time.perf_counter()
        masked = self.config.model.document_mask
        feeds = [
            Feed(partial(self.batches, 0), masked, unused=unused(unwrap(chunk), masked))
            for chunk in self.chunks
        ]
        self.schedule.warm_start(
            forward_step_func=forward_step,
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

    def _run(
        self, make: Callable[[int], MicroBatchTensors], micro_batches: int, forward_only: bool
    ) -> tuple[Tensor, float]:
        masked = self.config.model.document_mask
        firsts = first_micro_batches(self.config, self.groups.pp.rank(), micro_batches)
        feeds = [
            Feed(make, masked, first, unused(unwrap(chunk), masked))
            for first, chunk in zip(firsts, self.chunks, strict=True)
        ]
        losses = self.schedule(
            forward_step_func=forward_step,
            data_iterator=feeds,
            model=self.chunks,
            num_microbatches=micro_batches,
            seq_length=self.config.data.sequence_length,
            micro_batch_size=self.config.training.micro_batch,
            forward_only=forward_only,
        )
        sums = torch.zeros(2, dtype=torch.float64, device=device())
        for entry in losses:
            sums += entry["loss"]
        return sums, sum(feed.waited for feed in feeds)
