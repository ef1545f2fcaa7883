"""A run's pieces on one rank, whose operations are timed one by one."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus
from hcmegatron.data.dataset import Batches
from hcmegatron.data.feed import Feed, MicroBatchTensors, unused_tensors
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.measure.messages import Hop, collectives
from hcmegatron.measure.stages import StageClock, Times, UndividedStage, done, timed
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.message import message_width
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.pipeline.configured_schedule import most_held, placement
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import device, timeout
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import loss
from hcmegatron.training.model import build_model, gather_parameters
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.runtime.torch_distributed import DistributedTransport
from schedules.runtime.transport import Transport

ENDLESS = 1 << 30  # micro-batches, none of which is a step's last


class Bench:
    """A rank of a run that never steps: everything that a step consists of, one thing at a time. Collective.

    Attributes:
        stepper: what a run steps with.
    """

    def __init__(
        self, config: Config, groups: ProcessGroupCollection, corpus: Corpus | PreparedCorpus
    ) -> None:
        self.config, self.groups, self.where = config, groups, placement(config.parallel)
        text = Text(corpus, build_tokenizer(config.data.tokenizer))
        batches = Batches(text, config.data, config.training, groups.dp.rank(), groups.dp.size())
        self.chunks = build_model(config, text.tokenizer.vocab_size, groups)
        models = [unwrap(chunk) for chunk in self.chunks]
        held = most_held(config, batches.micro_batches, groups.pp.rank())
        self.recomputation = Recomputation(config.recompute, models, micro_batch_tokens(config), *held)
        gather_parameters(self.chunks)
        self.optimizer = build_optimizer(config, self.chunks, groups)
        set_learning_rate(self.optimizer, 0.0, 0.0)  # weights stay where routers send tokens as in a run
        self.schedule = build_forward_backward(config, self.chunks, groups, self.recomputation.execution)
        self.stepper = Stepper(config, self.chunks, self.optimizer, self.schedule, batches, groups)
        if isinstance(self.schedule, ScheduleRunner):
            self.stages = self.schedule.stages
        else:
            own = self.where.stages_of(groups.pp.rank())
            self.stages = {
                s: UndividedStage(*pair, self.recomputation.execution)
                for s, pair in zip(own, zip(self.chunks, models, strict=True), strict=True)
            }
        dtype = DTYPES[config.training.dtype]
        self.message = torch.randn(message_shape(config, groups), device=device(), dtype=dtype)
        self.clock = StageClock(self.stages, self.where, self.message.clone)
        masked = config.model.document_mask

        def again(index: int) -> MicroBatchTensors:
            """The micro-batches of one step, over and over."""
            return batches(0, index % batches.micro_batches)

        self.feeds = [Feed(again, masked, unused=unused_tensors(model, masked)) for model in models]
        self.recomputation.measured()  # which costs time until it ends
        self.hop = (
            Hop(self._transport(), self.where, groups.pp.rank(), self.message)
            if groups.pp.size() > 1
            else None
        )

    def round(self) -> Times:
        """Every operation of a step, on all ranks at once."""
        found: Times = defaultdict(list)
        self._begin(forward_only=False)
        together()
        found["clear"].append(timed(self.stepper.clear))
        found.update(self.clock.round())
        together()
        found["reduce"].append(timed(self._reduce))
        together()
        found["update"].append(timed(self._update))
        self._begin(forward_only=True)
        together()
        found.update(self.clock.evaluate())
        if self.hop:
            together()
            found.update(self.hop.round())
        return found

    def communication(self, found: Times) -> dict[str, int]:
        """Adds collectives and a copy of this run's sizes to what was found; returns the bytes of each."""
        sizes = {"hop": self.message.nbytes}
        gradients = sum(
            buffer.grad_data.nbytes
            for chunk in self.chunks
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        )
        asked = {
            "all-reduce": gradients,
            **dict.fromkeys(("all-gather", "all-to-all", "copy"), self.message.nbytes),
        }
        for name, (size, seconds) in collectives(asked).items():
            found[name], sizes[name] = seconds, size
        return sizes

    def _transport(self) -> Transport:
        """Of the schedule; under Megatron's own, which have none, torch.distributed's, whose calls are theirs."""
        if isinstance(self.schedule, ScheduleRunner):
            return self.schedule.transport
        limit = timeout(self.config.parallel)
        return DistributedTransport(self.groups.pp, self.where, device(), timeout=limit)

    def _begin(self, forward_only: bool) -> None:
        for chunk, stage, feed in zip(self.chunks, self.stages.values(), self.feeds, strict=True):
            chunk.train(not forward_only)
            feed.rewind()  # the same text again, as many times as it takes
            stage.begin(loss.forward_step, feed, forward_only, ENDLESS, lambda: None)

    def _reduce(self) -> None:
        """What follows the last backward."""
        if isinstance(self.schedule, ScheduleRunner):
            self.schedule.reduce()
            return
        config, tokens = self.chunks[0].config, torch.ones((), dtype=torch.int, device=device())
        if self.config.parallel.overlap_grad_reduce:
            for chunk in self.chunks:
                chunk.start_grad_sync()
        config.finalize_model_grads_func(self.chunks, tokens, pg_collection=self.groups)

    def _update(self) -> None:
        """What follows the gradients."""
        sums = torch.ones(3, dtype=torch.float64, device=device())
        self.stepper.update(loss.mean(sums))


def message_shape(config: Config, groups: ProcessGroupCollection) -> tuple[int, int, int]:
    """[s, b, width] of a message between stages."""
    parts = groups.tp.size() if config.parallel.sequence else 1
    dtype = DTYPES[config.training.dtype]
    width = message_width(config.connection, config.model.hidden_size, dtype)
    return config.data.sequence_length // parts, config.training.micro_batch, width


def together() -> None:
    """Wait for the device and for the other ranks."""
    done()
    dist.barrier()
    done()
