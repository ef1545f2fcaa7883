"""A validated schedule as Megatron's forward_backward_func: the only place where chunks meet the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Config, Parallel, has_to_split
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.pipeline.chunk_stage import ChunkStage
from hcmegatron.pipeline.configured_schedule import evaluation_schedule, placement, training_schedule
from hcmegatron.pipeline.cuda_streams import check_channels
from hcmegatron.pipeline.lanes import Lanes
from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.pipeline.overlap import OverlappedStage
from hcmegatron.pipeline.replica_sync import ReplicaSync
from hcmegatron.pipeline.tied_embeddings import embedding_groups, sum_gradients, tied_weights
from hcmegatron.pipeline.warm_start import Alone, copies_to_device, run_alone
from hcmegatron.platform import transfer
from hcmegatron.platform.communicators import start_communicators
from hcmegatron.platform.distributed import device, timeout
from hcmegatron.platform.sdpa import disable_persistent_sdpa
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from schedules.costs import Costs
from schedules.placement import Placement
from schedules.runtime.choose import cpu_transport
from schedules.runtime.gpu import GPU
from schedules.runtime.record import Mark, Record
from schedules.runtime.runtime import Runtime
from schedules.runtime.torch_distributed import DistributedTransport
from schedules.runtime.transport import Transport
from schedules.runtime.watchdog import Watchdog
from schedules.schedule import Message, Schedule


class ScheduleRunner:
    """Runs the configuration's schedule over this rank's chunks; drop-in for Megatron's forward_backward_func.

    Losses are summed over tokens and gradients divided by the tokens of the global batch when they are finalised,
    wherever the schedule puts the loss. Creating one is collective over the pipeline group.

    Args:
        costs: of a schedule, how long hops take beside stages, which says how early receives are posted on a GPU.
        chunks: wrapped, in ascending order of their stage ids.
        models: the chunks inside their wrappers.
        execution: how the chunks' nodes are run. Overlapping comes on top.

    Attributes:
        record: what the last step executed, and when.
        messages: how they go from rank to rank, in words; "" where there is nothing to choose.
        finalised: when its gradients were, where somebody listens.
        reduces: whether a step ends by summing gradients over ranks; False leaves every rank its own.
    """

    def __init__(
        self,
        config: Config,
        costs: Callable[[Schedule], Costs],
        chunks: list[nn.Module],
        models: list[ConnectionGPT],
        groups: ProcessGroupCollection,
        execution: Execution,
        transport: Transport | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        parallel = config.parallel
        self.parallel, self.costs, self.chunks, self.groups = parallel, costs, chunks, groups
        self._training_schedule = partial(training_schedule, config)
        self.watchdog = watchdog
        self.network = models[0].config  # Megatron's, the same in all chunks
        self.width = models[0].decoder.message_width
        self.placement = placement(parallel)
        if GPU.present():
            check_channels(parallel)
        if parallel.overlap:
            disable_persistent_sdpa()
        build = (
            partial(OverlappedStage, Lanes(device()))
            if parallel.overlap
            else partial(ChunkStage, splits=has_to_split(config))
        )
        self.stages: dict[int, ChunkStage] = {
            stage: build(chunk, model, execution)
            for stage, chunk, model in zip(
                self.placement.stages_of(groups.pp.rank()), chunks, models, strict=True
            )
        }
        self._own_transport = transport is None
        self.transport, self.messages = (
            (transport, "") if transport else pipeline_transport(parallel, groups.pp, self.placement)
        )
        self.tied = tied_weights(models) if models[0].share_embeddings_and_output_weights else None
        self.finalise_groups = embedding_groups(groups, self.placement)
        mirrored = len(self.placement.paths) > 1
        self.replica_sync = (
            ReplicaSync(chunks, self.placement, groups.pp, timeout(parallel)) if mirrored else None
        )
        # Sums over copies of a parameter in the pipeline come before the data-parallel reduction.
        self._summed_first = bool(self.tied or self.replica_sync)
        self._runtimes: dict[tuple[int, bool], Runtime] = {}
        self._shapes: list[tuple[int, ...]] = []
        self.record: Record | None = None
        self.finalised: Mark = 0.0
        self._times: NodeTimes | None = None
        self.reduces = True

    def __call__(
        self,
        *,
        forward_step_func: Any,
        data_iterator: Iterator | list[Iterator],
        model: nn.Module | list[nn.Module],
        num_microbatches: int,
        seq_length: int | Sequence[int],
        micro_batch_size: int,
        forward_only: bool = False,
        **others: Any,
    ) -> list[dict[str, Tensor]]:
        """One step. See Megatron's get_forward_backward_func; `model` is the list that this runner was made for.

        Args:
            seq_length: of all micro-batches, or, beyond Megatron's contract, of each.
            others: the rest of Megatron's contract, which has to be None or False.

        Returns:
            One dictionary per micro-batch where the loss lives, else an empty list.

        Raises:
            ValueError: one of `others` asks for something, or lengths that do not fit.
        """
        _refuse(others)
        iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
        lengths = [seq_length] * num_microbatches if isinstance(seq_length, int) else seq_length
        self._shapes = self._message_shapes(lengths, num_microbatches, micro_batch_size)
        for (number, stage), batches in zip(self.stages.items(), iterators, strict=True):
            own = len(self.placement.microbatches_of(number, num_microbatches))
            stage.begin(forward_step_func, batches, forward_only, own, partial(self._reduce_early, stage))
        self._scale_auxiliary_losses()
        with nullcontext() if forward_only else self._no_sync():
            mark = self._times.mark if self._times else None
            self.record = self._runtime(num_microbatches, forward_only).step(mark)
        if not forward_only and self.reduces:
            self._finalise()
        if self._times:
            self.finalised = self._times.mark()
        return [loss for stage in self.stages.values() for loss in stage.losses]

    def warm_start(
        self,
        *,
        forward_step_func: Any,
        batches: Sequence[Iterator],
        num_microbatches: int,
        seq_length: int,
        micro_batch_size: int,
        forward_only: bool = False,
    ) -> None:
        """Use every communicator, and run whatever the chunks run in a step and in an evaluation, with no message under
        way between stages (warm_start.py). Collective. Gradients, the tokens of the routers' experts, their biases and
        random states are not what they were.

        Args:
            batches: of each chunk, as many micro-batches as are asked for.
            num_microbatches: of the steps to come.
            forward_only: they are evaluations alone.
        """
        start_communicators(self.groups)
        transfer.reserve(copies_to_device(self.chunks, [next(own) for own in batches], num_microbatches))
        (shape,) = self._message_shapes([seq_length], 1, micro_batch_size)
        dtype, generator = self.network.pipeline_dtype, torch.Generator(device()).manual_seed(0)
        message = partial(torch.randn, shape, dtype=dtype, device=device(), generator=generator)
        alone = Alone(self.stages, self.placement, message)
        self._scale_auxiliary_losses()

        def begin(forward_only: bool) -> None:
            for chunk, stage, own in zip(self.chunks, self.stages.values(), batches, strict=True):
                chunk.train(not forward_only)
                stage.begin(forward_step_func, own, forward_only, 0, lambda: None)

        if not forward_only:
            begin(forward_only=False)
            actions = self._training_schedule(num_microbatches).actions[self.groups.pp.rank()]
            with self._no_sync():
                run_alone(actions, alone)
            self.reduce()
        begin(forward_only=True)
        with torch.no_grad():
            for number in self.stages:
                alone.forward(number)
        for chunk in self.chunks:
            chunk.train()

    def reduce(self) -> None:
        """All that a step does with its gradients after the last of them: sums over copies, data-parallel reduction,
        division by the tokens. Collective."""
        for stage in self.stages.values():
            self._reduce_early(stage)
        self._finalise()

    def listen(self, times: NodeTimes | None) -> None:
        """From now on `times` gets those of all stages' nodes; None: nobody asks any more. Between steps."""
        self._times = times
        for stage in self.stages.values():
            stage.listen(times)

    def close(self) -> None:
        """End what this runner has made, on all ranks: groups, which torch.distributed's end ends too, and connections
        and shared memory, which go with the runner."""
        if self._own_transport:
            self.transport.close()
        if self.replica_sync:
            self.replica_sync.close()

    def _runtime(self, microbatches: int, forward_only: bool) -> Runtime:
        key = microbatches, forward_only
        if key not in self._runtimes:
            schedule = (
                evaluation_schedule(self.placement, microbatches)
                if forward_only
                else self._training_schedule(microbatches)
            )
            self._runtimes[key] = Runtime(
                schedule,
                self.groups.pp.rank(),
                self.stages,
                self.transport,
                shape=self._message_shape,
                dtype=self.network.pipeline_dtype,
                device=device(),
                evaluate=forward_only,
                watchdog=self.watchdog,
                costs=self.costs(schedule),
            )
        return self._runtimes[key]

    def _message_shapes(
        self, lengths: Sequence[int], microbatches: int, micro_batch_size: int
    ) -> list[tuple[int, ...]]:
        parts = self.groups.tp.size() if self.parallel.sequence else 1
        return [(length, micro_batch_size, self.width) for length in _split(lengths, microbatches, parts)]

    def _scale_auxiliary_losses(self) -> None:
        if self.network.num_moe_experts:
            # losses are sums over tokens, and so are the auxiliary ones: no micro-batch scale
            MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=device()))

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        """Gradients are not reduced as they come: `_reduce_early` and `_finalise` see to it."""
        with ExitStack() as chunks:
            for chunk in self.chunks:
                chunks.enter_context(chunk.no_sync())
            yield

    def _message_shape(self, message: Message) -> tuple[int, ...]:
        return self._shapes[message.microbatch]

    def _reduce_early(self, stage: ChunkStage) -> None:
        """A chunk's gradients are complete: their reduction may overlap with what other chunks still compute."""
        if self.parallel.overlap_grad_reduce and self.reduces and not self._summed_first:
            stage.chunk.start_grad_sync()

    def _finalise(self) -> None:
        if self.tied:
            sum_gradients(self.tied)
        if self.replica_sync:
            self.replica_sync.sum()
        tokens = torch.zeros((), dtype=torch.int, device=device())
        for stage in self.stages.values():
            tokens += stage.tokens
        # Megatron reads the count on the last pipeline rank; here it is where the schedule put the loss.
        dist.all_reduce(tokens, group=self.groups.pp)
        megatron_config = self.chunks[0].config
        if megatron_config.finalize_model_grads_func is not None:
            if self.parallel.overlap_grad_reduce and self._summed_first:
                for chunk in self.chunks:
                    chunk.start_grad_sync()
            megatron_config.finalize_model_grads_func(self.chunks, tokens, pg_collection=self.finalise_groups)


# What both generations' forward_backward_func takes beyond what this one does.
MEGATRON_ONLY = (
    "decoder_seq_length",
    "collect_non_loss_data",
    "first_val_step",
    "adjust_tensor_shapes_fn",
    "p2p_communicator",
    "pg_collection",
    "force_all_reduce",
)


def pipeline_transport(
    parallel: Parallel, group: dist.ProcessGroup, where: Placement
) -> tuple[Transport, str]:
    """What carries a pipeline's messages as `parallel.transport` says, and its name with the reason for it, or "" where
    nothing was chosen. Collective over the group."""
    limit = timeout(parallel)
    forced = parallel.transport == "gloo" and group.size() > 1
    if not (GPU.present() or group.size() == 1 or forced):
        return cpu_transport(group, where, timeout=limit)
    words = ""
    if forced:
        words = "NCCL, for parallel.transport is of CPUs" if GPU.present() else "gloo: parallel.transport"
    return DistributedTransport(group, where, device(), timeout=limit), words


def _refuse(others: dict[str, Any]) -> None:
    """TypeError for what no forward_backward_func takes, ValueError for what ours does not do."""
    if unknown := [name for name in others if name not in MEGATRON_ONLY]:
        raise TypeError(f"forward_backward_func() got unexpected arguments: {', '.join(unknown)}")
    if asked := [name for name, value in others.items() if value is not None and value is not False]:
        raise ValueError(
            f"{', '.join(asked)}: of Megatron's own schedules only; leave out, or use one of those"
        )


def _split(lengths: Sequence[int], microbatches: int, parts: int) -> list[int]:
    """Tokens of every micro-batch on each of `parts` tensor-parallel ranks."""
    if len(lengths) != microbatches:
        raise ValueError(
            f"seq_length has {len(lengths)} lengths for {microbatches} micro-batches; give one for each"
        )
    if uneven := [length for length in lengths if length % parts]:
        raise ValueError(
            f"seq_length: {uneven[0]} tokens do not divide over {parts} ranks of sequence parallelism; pad them to a "
            f"multiple of {parts}"
        )
    return [length // parts for length in lengths]
