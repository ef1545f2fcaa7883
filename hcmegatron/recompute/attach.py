"""What configuration asks of recomputation, set up on a rank's chunks."""

from __future__ import annotations

import torch

from hcmegatron.config.schema import Recompute
from hcmegatron.model.block import ConnectionBlock
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.recompute.block_plan import (
    BlockPlan,
    Terms,
    compare_with_measured,
    describe_plan,
    mib,
    plan_blocks,
)
from hcmegatron.recompute.execution import RecomputedBlocks, RecomputedLayers
from hcmegatron.recompute.measure_terms import measure_terms
from hcmegatron.recompute.meter import Meter


class Recomputation:
    """Recomputation set up on a rank: its plan, and what is measured until `measured` is asked.

    Attributes:
        plan: of mode `block`, else None.
        execution: how the chunks are to run their nodes; the same one before and after measuring.
    """

    def __init__(
        self, asked: Recompute, chunks: list[ConnectionGPT], tokens: int, live: int, deferred: int
    ) -> None:
        """What configuration asks for these chunks.

        Args:
            chunks: this rank's, unwrapped. Selective recomputation is built into them already.
            tokens: of one micro-batch.
            live, deferred: micro-batches (times chunks) of this rank that wait for their backward at once, and
                those that at the same time wait for their weight gradients.

        Raises:
            ValueError: a block length that does not fit the chunks.
        """
        self.asked = asked
        self.plan: BlockPlan | None = None
        self.execution = RecomputedLayers() if asked.mode == "full" else Execution()
        if asked.mode == "block":
            decoders = [chunk.decoder for chunk in chunks]
            longest = max(decoders, key=lambda decoder: len(decoder.sublayers))
            self.streams = longest.streams
            sublayers, length = len(longest.sublayers), asked.block_length
            if length.isdigit():  # that fits the longest stage of all ranks; shorter ones are one block
                length = str(min(int(length), sublayers))
            self.plan = plan_blocks(sublayers, length, _terms(longest, tokens), live, deferred)
            self.execution = RecomputedBlocks(self.plan.length, Meter(*decoders))

    def planned(self) -> list[str]:
        """The plan in words, before training."""
        if self.plan is None:
            return []
        return describe_plan(self.plan, self.asked.block_length, self.streams)

    def measured(self) -> list[str]:
        """What was held so far, in words, beside the plan. Measuring, which costs time, ends here."""
        if not isinstance(self.execution, RecomputedBlocks) or self.execution.meter is None:
            return []
        meter, self.execution.meter = self.execution.meter, None
        lines = compare_with_measured(self.plan, meter.kept, meter.peak, meter.everything)
        if torch.cuda.is_available():
            lines.append(f"  allocator's peak: {mib(torch.cuda.max_memory_allocated())}")
        return lines


def _terms(decoder: ConnectionBlock, tokens: int) -> Terms:
    megatron_config = decoder.config
    if megatron_config.sequence_parallel:
        tokens //= megatron_config.tensor_model_parallel_size
    return measure_terms(
        decoder.sublayers[0],
        decoder.streams,
        megatron_config.hidden_size,
        tokens,
        megatron_config.params_dtype,
        next(decoder.parameters()).device,
    )
