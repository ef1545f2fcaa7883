"""Weights, gradients and optimizer state of a rank to the byte, as Megatron lays them out in buffers. Without torch.

Megatron's DistributedDataParallel puts a chunk's parameters, last to first, into one buffer for every precision, and
experts, where other ranks have copies of them than of the rest, into buffers of their own. With the distributed
optimizer every parameter begins at a multiple of 64 numbers, every bucket is padded to one of lcm(data-parallel ranks,
128), and each rank updates an equal part of every bucket: its master weights and moments are those of the parameters
in that part. Counted as tensors are: without the allocator's rounding, and without the counts of updates, four bytes a
parameter, that torch's AdamW keeps and fused ones do not. Layers are Megatron's local ones.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.connections import accounting
from hcmegatron.planner.layers import (
    Matrix,
    attention,
    feed_forward,
    final_norm,
    norms,
    shared_out,
    vocabulary,
)
from hcmegatron.planner.scheduled import placement
from hcmegatron.planner.stages import ModelStage
from hcmegatron.planner.state_bytes import Bytes, of_connections, of_network

ALIGNED, PADDED = 64, 128  # numbers: where a parameter begins, and what a bucket's length is a multiple of


class HeldParameter(NamedTuple):
    """A parameter as a rank holds it.

    Attributes:
        numbers: this rank's.
        bytes: of each.
        apart: an expert's, whose copies other ranks have than those of the rest.
        alone: in a bucket of its own: an embedding tied to one in another chunk.
    """

    numbers: int
    bytes: Bytes
    apart: bool = False
    alone: bool = False


def parameters(config: Config, vocab_size: int, part: ModelStage) -> Iterator[HeldParameter]:
    """A chunk's parameters in the order of its modules. vocab_size: padded."""
    C, tied, usual = config.model.hidden_size, config.model.tie_embeddings, of_network(config)
    embedding, head = vocabulary(config, vocab_size)[0], vocabulary(config, vocab_size)[-1]
    elsewhere = tied and not (part.first and part.last)
    around, inside = {}, []
    for norm in norms(config):
        sizes = [HeldParameter(size, usual) for size in norm.parameters.values()]
        if norm.key.startswith("self_attention."):
            inside += sizes
        else:
            around[norm.key] = sizes
    # a descriptor lists its parameters as its module has them
    connection = [
        HeldParameter(p.count, of_connections(config, p.optimizer_role))
        for p in accounting.table(config.connection, C).values()
    ]
    if part.first:
        yield HeldParameter(shared_out(config, embedding), usual, alone=elsewhere)
    for layer in part.layers:
        yield from connection
        yield from around.get("input_layernorm", [])
        # what leads back into the stream is built first
        yield from _matrices(config, sorted(attention(config), key=lambda matrix: not matrix.into_stream))
        yield from inside
        yield from around.get("attention_output_layernorm", [])
        yield from connection
        yield from around.get("pre_mlp_layernorm", [])
        yield from _matrices(config, feed_forward(config, layer))
        yield from around.get("mlp_output_layernorm", [])
    if part.last:
        yield from (
            HeldParameter(p.count, of_connections(config, p.optimizer_role))
            for p in accounting.head_table(config.connection, C).values()
        )
        yield from (HeldParameter(size, usual) for size in final_norm(config).parameters.values())
        if not (tied and part.first):
            yield HeldParameter(shared_out(config, head), usual, alone=elsewhere)


def _matrices(config: Config, matrices: Sequence[Matrix]) -> Iterator[HeldParameter]:
    parallel = config.parallel
    routed = [matrix for matrix in matrices if matrix.split == "expert"]
    # as model.gpt.mark_weights has it
    apart = parallel.expert > 1 or parallel.expert * parallel.expert_tensor != parallel.tensor
    for matrix in matrices:
        usual = of_network(config, matrix.optimizer_role)
        if matrix.split != "expert":
            yield HeldParameter(shared_out(config, matrix), usual)
        elif matrix is routed[0]:
            local = matrix.count // parallel.expert
            sizes = [shared_out(config, each) for each in routed]
            if config.moe.grouped:  # all local experts are one parameter
                yield from (HeldParameter(local * size, usual, apart) for size in sizes)
            else:
                yield from (HeldParameter(size, usual, apart) for _ in range(local) for size in sizes)


@dataclass(frozen=True)
class Buffer:
    """A chunk's parameters of one precision and one data-parallel group.

    Attributes:
        weight, gradient: bytes of a number.
        shards: parts of the optimizer state; 1 where every rank has all of it.
        states: bytes of master weights and moments a number, by parameter.
        places: of the parameters, numbers from the buffer's beginning.
        buckets: the same of what is reduced together, padding included.
    """

    weight: int
    gradient: int
    apart: bool
    shards: int
    states: tuple[int, ...]
    places: tuple[range, ...]
    buckets: tuple[range, ...]

    @property
    def numbers(self) -> int:
        """Padding included."""
        return self.buckets[-1].stop

    @cached_property
    def state(self) -> Counter[int]:
        """Bytes of master weights and moments, by shard."""
        found: Counter[int] = Counter()
        ends = [bucket.stop for bucket in self.buckets]
        for place, bytes_ in zip(self.places, self.states, strict=True):
            start = place.start
            while start < place.stop:
                bucket = self.buckets[bisect_right(ends, start)]
                size = len(bucket) // self.shards
                shard = (start - bucket.start) // size
                stop = min(place.stop, bucket.start + (shard + 1) * size)
                found[shard] += bytes_ * (stop - start)
                start = stop
        return found


@dataclass(frozen=True)
class Resident:
    """What the ranks of one pipeline stage hold all the time.

    Attributes:
        owners: (data-parallel rank, the one among those with the same experts) of every rank.
    """

    buffers: tuple[Buffer, ...]
    owners: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        return sum(buffer.numbers * buffer.weight for buffer in self.buffers)

    @property
    def gradients(self) -> int:
        return sum(buffer.numbers * buffer.gradient for buffer in self.buffers)

    def state(self, owner: tuple[int, int]) -> int:
        """Master weights and moments of one rank."""
        shard_of = {False: owner[0], True: owner[1]}
        return sum(b.state[shard_of[b.apart] if b.shards > 1 else 0] for b in self.buffers)

    @cached_property
    def most_state(self) -> int:
        """Of the rank that has most of it."""
        return max(map(self.state, set(self.owners)))

    @property
    def total(self) -> int:
        """Bytes of the fullest rank."""
        return self.weights + self.gradients + self.most_state


def resident(
    config: Config, vocab_size: int, parts: Iterable[ModelStage], world_size: int, first: bool
) -> Resident:
    """Of the ranks that hold the chunks `parts`.

    Args:
        vocab_size: padded.
        first: they are the first of their pipeline, whose buckets Megatron keeps small.
    """
    parallel, sharded = config.parallel, distributed_optimizer(config)
    data = world_size // (parallel.pipeline * parallel.tensor)
    of_experts = parallel.expert * parallel.expert_tensor
    data_of_experts = world_size // (parallel.pipeline * of_experts)
    # one bucket for a stage whose copies are summed buffer by buffer (training.model)
    copies = len(placement(config.parallel).paths)
    small = parallel.overlap_grad_reduce and first and copies == 1
    most = max(40_000_000, 1_000_000 * data) if small else None
    buffers = []
    for part in parts:
        kinds: dict[tuple[int, int, bool], list[HeldParameter]] = defaultdict(list)
        for parameter in parameters(config, vocab_size, part):
            kinds[parameter.bytes.weight, parameter.bytes.gradient, parameter.apart].append(parameter)
        for (weight, gradient, apart), own in kinds.items():
            shards = (data_of_experts if apart else data) if sharded else 1
            states = tuple(parameter.bytes.state for parameter in reversed(own))
            places, buckets = _laid_out(own, shards, most, sharded)
            buffers.append(Buffer(weight, gradient, apart, shards, states, places, buckets))
    owners = tuple(
        (rank // parallel.tensor, rank // of_experts) for rank in range(world_size // parallel.pipeline)
    )
    return Resident(tuple(buffers), owners)


def _laid_out(
    parameters: Sequence[HeldParameter], shards: int, most: int | None, sharded: bool
) -> tuple[tuple[range, ...], tuple[range, ...]]:
    """(places, buckets) as Megatron's _ParamAndGradBuffer (0.16.1) and DistributedOptimizer (0.19.2) lay them out."""
    aligned, padded = (ALIGNED, math.lcm(shards, PADDED)) if sharded else (1, 1)
    places: list[range] = []
    buckets: list[range] = []

    def up(number: int, multiple: int) -> int:
        return -(-number // multiple) * multiple

    def close(end: int) -> int:
        buckets.append(range(buckets[-1].stop if buckets else 0, up(end, padded)))
        return buckets[-1].stop

    end = begun = 0
    for parameter in reversed(parameters):
        start = up(end, aligned)
        alone = parameter.alone and sharded
        if alone and start > begun:
            start = begun = close(start)
        end = start + parameter.numbers
        places.append(range(start, end))
        if alone or (most is not None and end - begun >= most):
            end = begun = close(end)
    if end > begun:
        close(end)
    return tuple(places), tuple(buckets)
