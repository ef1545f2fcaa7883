"""Small networks under any layout, run for one step inside ranks (tests.ranks)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from hcmegatron.config.schema import Config
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import ConnectionGPT, unwrap
from hcmegatron.model.initialise import _generator
from hcmegatron.model.param_shards import param_shards
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import seed_regions
from hcmegatron.training.model import gather_parameters, initialised_chunks, wrap_chunk
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from tests.small_configs import VOCAB


def randomise(chunk: nn.Module, scale: float = 0.2) -> None:
    """Moves connections and norms away from their symmetric start, by amounts that depend on name alone."""
    for part in param_shards(chunk):
        if parameter_of(part.data) or len(part.shape) == 1:
            noise = torch.randn(part.shape, generator=_generator(7, part)) * scale
            part.data.detach().add_(part.slice_of(noise))


class Batches:
    """Random tokens that depend on the place in the global batch alone."""

    def __init__(self, config: Config, data_rank: int, data_parallel: int) -> None:
        self.config, self.data_rank, self.data_parallel = config, data_rank, data_parallel
        self.micro_batches = config.training.global_batch // (config.training.micro_batch * data_parallel)

    def samples(self, seen: int) -> range:
        """Of a step; nobody looks at them here."""
        return range(seen, seen + self.config.training.global_batch)

    def __call__(self, step: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        b, s = self.config.training.micro_batch, self.config.data.sequence_length
        first = (micro_batch * self.data_parallel + self.data_rank) * b
        rows = torch.stack(
            [
                torch.randint(
                    VOCAB, (s + 1,), generator=torch.Generator().manual_seed(1000 * step + first + i)
                )
                for i in range(b)
            ]
        )
        sequences = torch.arange(first, first + b).unsqueeze(1)
        places = torch.arange(s).expand(b, s)
        return {
            "tokens": rows[:, :-1].contiguous(),
            "labels": rows[:, 1:].contiguous(),
            "loss_mask": (places >= sequences % 3).float(),  # sequences of unequal weight
            "position_ids": places.contiguous(),
            "document_ids": (places >= 5 + sequences).long(),
            **self.numbers(step, micro_batch),
        }

    def numbers(self, step: int, micro_batch: int) -> dict[str, int]:
        """See hcmegatron.data.dataset.Batches."""
        training = self.config.training
        place = (micro_batch * self.data_parallel + self.data_rank) * training.micro_batch
        return {"first_sample": step * training.global_batch + place}


@dataclass
class Outcome:
    """One step on this rank: mean loss, gradient norm, and its parts (see `values`) of the global tensors."""

    loss: float
    norm: float
    gradients: list
    updated: list
    dtypes: dict[str, str]


def chunks_of(config: Config, groups: object) -> list[ConnectionGPT]:
    chunks = initialised_chunks(config, VOCAB, groups)
    for chunk in chunks:
        randomise(chunk)
    return chunks


def one_step(
    config: Config,
    groups: object,
    fault: Callable[[list[ConnectionGPT]], None] | None = None,
    recomputed: Callable[[list[ConnectionGPT]], Execution] | None = None,
) -> Outcome:
    """One step from randomised parameters. The rate is 1 / clip, so that the gradient's part of it has norm 1.

    Adam's epsilon is 1, so that it moves along the gradient as SGD does (the distributed optimizer has Adam only).

    fault: called with the chunks before they are wrapped.
    recomputed: as fault; how the chunks' nodes are run.
    """
    seed_regions(config)
    chunks = chunks_of(config, groups)
    if fault is not None:
        fault(chunks)
    execution = recomputed(chunks) if recomputed else Execution()
    wrapped = [wrap_chunk(chunk, config, groups) for chunk in chunks]
    optimizer = build_optimizer(config, wrapped, groups)
    set_learning_rate(optimizer, 1 / config.optimizer.clip, config.optimizer.weight_decay)
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    schedule = build_forward_backward(config, wrapped, groups, execution)
    stepper = Stepper(config, wrapped, optimizer, schedule, batches, groups)
    if config.parallel.overlap_grad_reduce:
        stepper.rehearse()  # Megatron overlaps from the second step on
    sums, _ = stepper.gradients(0)
    dist.all_reduce(sums)
    whole_gradients(wrapped)
    found = gradients(wrapped)
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    stepper._clip(norm)
    optimizer.step_with_ready_grads()
    gather_parameters(wrapped)
    dtypes = {name: str(p.dtype) for chunk in chunks for name, p in chunk.named_parameters()}
    return Outcome((sums[0] / sums[1]).item(), norm, found, values(chunks), dtypes)


def values(chunks: list[nn.Module]) -> list:
    """(checkpoint key, leading indices, offset, copy of the local values) of every part of a global tensor."""
    return [
        (part.key, part.leading, part.offset, part.data.detach().float().numpy().copy())
        for chunk in chunks
        for part in param_shards(chunk)
    ]


def gradients(wrapped: list[nn.Module]) -> list:
    """The same of every gradient: the parameters hold their gradients for a moment."""
    parameters = [p for chunk in wrapped for p in chunk.parameters()]
    buffers = [b for chunk in wrapped for b in unwrap(chunk).buffers()]
    kept = [t.detach().clone() for t in parameters + buffers]
    for p in parameters:
        p.data.copy_(p.main_grad)
    for b in buffers:
        b.zero_()
    found = values([unwrap(chunk) for chunk in wrapped])
    for t, value in zip(parameters + buffers, kept, strict=True):
        t.data.copy_(value)
    return found


def whole_gradients(wrapped: list[nn.Module]) -> None:
    """Under the distributed optimizer each rank has summed its shard only: gather the others."""
    for chunk in wrapped:
        if not chunk.ddp_config.use_distributed_optimizer:
            continue
        for buffer in chunk.buffers + chunk.expert_parallel_buffers:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                shard = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                dist.all_gather_into_tensor(bucket.grad_data, shard, group=group)
