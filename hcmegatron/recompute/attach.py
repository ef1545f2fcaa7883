"""What configuration asks of recomputation, set up on a rank's chunks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hcmegatron.config.schema import Config
from hcmegatron.model.block import ConnectionBlock
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.model.nodes import Lane, MicroBatch, Node, State
from hcmegatron.recompute.measure import Meter
from hcmegatron.recompute.plan import BlockPlan, Terms, blocks, compare, describe, mib, plan
from hcmegatron.recompute.tape import Tape
from hcmegatron.recompute.terms import measure_terms
from megatron.core import tensor_parallel


class Recomputation:
    """Recomputation set up on a rank: its plan, and what was measured while `measuring`.

    Attributes:
        plan: of mode `block`, else None.
    """

    def __init__(self, config: Config, chunks: list[ConnectionGPT], live: int, deferred: int) -> None:
        """Make the chunks recompute as `config.recompute` says.

        Args:
            chunks: this rank's, unwrapped. Selective recomputation is built into them already.
            live, deferred: micro-batches (times chunks) of this rank that wait for their backward at once, and
                those that at the same time wait for their weight gradients.

        Raises:
            ValueError: a block length that does not fit the chunks.
        """
        self.config = config
        self.decoders = [chunk.decoder for chunk in chunks]
        self.plan: BlockPlan | None = None
        if config.recompute.mode == "full":
            for decoder in self.decoders:
                for layer in decoder.layers:
                    layer.nodes = (_checkpointed(layer.nodes),)
        if config.recompute.mode == "block":
            longest = max(self.decoders, key=lambda decoder: len(decoder.sublayers))
            sublayers, length = len(longest.sublayers), config.recompute.block_length
            if length.isdigit():  # that fits the longest stage of all ranks; shorter ones are one block
                length = str(min(int(length), sublayers))
            self.plan = plan(sublayers, length, _terms(config, longest), live, deferred)
            self.meter: Meter | None = Meter(*self.decoders)
            self._keep_blocks(self.meter)

    def planned(self) -> list[str]:
        """The plan in words, before training."""
        if self.plan is None:
            return []
        return describe(self.plan, self.config.recompute.block_length, self.decoders[0].streams)

    def measured(self) -> list[str]:
        """What was held so far, in words, beside the plan. Measuring, which costs time, ends here."""
        if self.plan is None or self.meter is None:
            return []
        lines = compare(self.plan, self.meter.kept, self.meter.peak, self.meter.everything)
        if torch.cuda.is_available():
            lines.append(f"  allocator's peak: {mib(torch.cuda.max_memory_allocated())}")
        self.meter = None
        self._keep_blocks(None)
        return lines

    def _keep_blocks(self, meter: Meter | None) -> None:
        for decoder in self.decoders:
            keep_blocks(decoder, self.plan.length, meter)


def keep_blocks(decoder: ConnectionBlock, length: int, meter: Meter | None = None) -> None:
    """From now on micro-batches keep blocks of `length` sub-layers (or all of a shorter chunk) of this decoder."""
    sublayers = len(decoder.sublayers)
    decoder.keeping = partial(Tape, blocks(sublayers, min(length, sublayers)), meter)


def _terms(config: Config, decoder: ConnectionBlock) -> Terms:
    device = next(decoder.parameters()).device
    tokens = config.training.micro_batch * config.data.sequence_length
    if config.parallel.sequence:
        tokens //= config.parallel.tensor
    return measure_terms(
        decoder.sublayers[0],
        decoder.streams,
        config.model.hidden_size,
        tokens,
        decoder.config.params_dtype,
        device,
    )


def _checkpointed(nodes: tuple[Node, ...]) -> Node:
    """All nodes of a layer as one that keeps its input alone and runs again in backward."""

    def run(state: State, micro_batch: MicroBatch) -> State:
        def layer(*state: Tensor) -> State:
            for node in nodes:
                state = node.forward(state, micro_batch)
            return state

        return tensor_parallel.checkpoint(layer, False, *state)

    return Node("layer", Lane.COMPUTE, run)
