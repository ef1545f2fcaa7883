"""How long the blocks are (mHC, 2512.24880, Eq. 20): arithmetic on bytes, without torch.

A chunk of L sub-layers (attention and FFN each count one) is cut into blocks of L_r. Every live micro-batch keeps each
block's first streams (nC a token) and each sub-layer's output (C); one block at a time is rebuilt, which holds
(n+2)C a sub-layer: streams, read, norm output. So m live micro-batches cost, beside the outputs,

    m nC ceil(L / L_r) + (n+2)C L_r,

which the paper minimises for m = 1 at L_r = sqrt(nL / (n+2)); m micro-batches ask for about sqrt(m) longer blocks.
What a connection really holds differs from (n+2)C by its kind, norm and kernels, so the terms are parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import Settings

MIB = 2**20


@dataclass(frozen=True)
class Terms:
    """Bytes of one micro-batch on one rank.

    Attributes:
        streams: one state of the streams, nC wide.
        output: one sub-layer's output y.
        rebuilt: what a rebuilt sub-layer holds beyond its output: streams, coefficients, read, norm output.
    """

    streams: int
    output: int
    rebuilt: int


def expected_terms(conn: Settings, C: int, itemsize: int, tokens: int) -> Terms:
    """The terms from counts alone, for planning before there is a model: what `measure_terms` finds, up to statistics
    of norms.

    Args:
        conn: config.schema.Connection.
        itemsize: bytes of an element of the streams.
    """
    output = C * itemsize
    # the read, and the norm's output, which may be the same
    around = (
        accounting.saved_bytes(conn, C, itemsize) + (1 if accounting.kind_of(conn).normalises else 2) * output
    )
    return Terms(accounting.streams(conn) * output * tokens, output * tokens, around * tokens)


def blocks(sublayers: int, length: int) -> list[int]:
    """Sub-layers of each block of a chunk, in order.

    What does not divide goes into the first block: backward begins with the last one, while everything is still
    kept, so the most that is held is exactly the plan's sum.
    """
    whole, rest = divmod(sublayers, length)
    return ([rest] if rest else []) + [length] * whole


def objective(sublayers: int, length: int, terms: Terms, live: int = 1) -> int:
    """live * streams * ceil(L / L_r) + rebuilt * L_r."""
    return live * terms.streams * math.ceil(sublayers / length) + terms.rebuilt * length


def best_length(sublayers: int, terms: Terms, live: int = 1) -> int:
    """The length that minimises `objective`; the shortest of several."""
    return min(range(1, sublayers + 1), key=lambda length: objective(sublayers, length, terms, live))


def paper_length(sublayers: int, n: int) -> float:
    """sqrt(nL / (n+2)), the paper's closed form."""
    return math.sqrt(n * sublayers / (n + 2))


@dataclass(frozen=True)
class BlockPlan:
    """One rank's block length and its bytes.

    Attributes:
        sublayers: L, of the rank's longest chunk.
        length: L_r.
        live: m, micro-batches (times chunks) that wait for their backward at once.
        deferred: those among the others whose weight gradients still hold the norms' outputs.
    """

    sublayers: int
    length: int
    terms: Terms
    live: int = 1
    deferred: int = 0

    @property
    def one(self) -> int:
        """Bytes that one micro-batch keeps between forward and backward: first streams, outputs."""
        return (
            self.terms.streams * math.ceil(self.sublayers / self.length) + self.terms.output * self.sublayers
        )

    @property
    def kept(self) -> int:
        """Bytes that the rank keeps when most micro-batches wait."""
        return self.one * self.live + self._left

    @property
    def peak(self) -> int:
        """The same with one block rebuilt; its first streams are the kept ones."""
        return self.kept + self.terms.rebuilt * self.length - self.terms.streams

    @property
    def without(self) -> int:
        """Bytes that connections, norms and outputs hold without recomputation."""
        return (self.terms.rebuilt + self.terms.output) * self.sublayers * self.live + self._left

    @property
    def _left(self) -> int:
        return self.terms.output * self.sublayers * self.deferred


def plan_blocks(
    sublayers: int, block_length: str, terms: Terms, live: int = 1, deferred: int = 0
) -> BlockPlan:
    """The plan of a rank.

    Args:
        sublayers: L of the rank's longest chunk.
        block_length: `paper` (one live micro-batch), `live` (`live` of them), or a number.
        live, deferred: of the schedule, see BlockPlan.

    Raises:
        ValueError: a number that is not between 1 and L.
    """
    if block_length in ("paper", "live"):
        length = best_length(sublayers, terms, live if block_length == "live" else 1)
    else:
        length = int(block_length)
        if not 1 <= length <= sublayers:
            raise ValueError(
                f"recompute.block_length = {length} does not fit the {sublayers} sub-layers of a pipeline stage; "
                f"use 1 to {sublayers}, paper or live"
            )
    return BlockPlan(sublayers, length, terms, live, deferred)


def describe_plan(chosen: BlockPlan, block_length: str, n: int) -> list[str]:
    """The plan in words, with what the other objective would choose beside it."""
    L, live = chosen.sublayers, chosen.live
    choices = {name: plan_blocks(L, name, chosen.terms, live, chosen.deferred) for name in ("paper", "live")}
    choices = {block_length: chosen} | choices
    waiting = f"{live} live" + (
        f" and {chosen.deferred} with deferred weight gradients" * bool(chosen.deferred)
    )
    return [
        f"recompute block: {L} sub-layers in {len(blocks(L, chosen.length))} blocks of {chosen.length} "
        f"(block_length {block_length}; sqrt(nL/(n+2)) = {paper_length(L, n):.2f})",
        *(
            f"  {name}: blocks of {choice.length} keep {mib(choice.one)} a micro-batch, {mib(choice.kept)} with "
            f"{waiting}, {mib(choice.peak)} with one block rebuilt"
            for name, choice in choices.items()
        ),
        f"  without recomputation {mib(chosen.without)}",
    ]


def compare_with_measured(chosen: BlockPlan, kept: int, peak: int, everything: int) -> list[str]:
    """Measured bytes beside the plan's, in words. everything: with attention, MLPs and experts."""
    return [
        f"recompute block, measured (planned): kept {mib(kept)} ({mib(chosen.kept)}), with one block rebuilt "
        f"{mib(peak)} ({mib(chosen.peak)}); all activations of the layers {mib(everything)}"
    ]


def mib(size: float) -> str:
    """A size for a line of text."""
    return f"{size / MIB:,.2f} MiB" if size < 100 * MIB else f"{size / MIB:,.0f} MiB"
