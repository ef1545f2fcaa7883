"""Bytes of what a run sends and writes, from its configuration. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.connections import accounting
from hcmegatron.planner import counts
from hcmegatron.planner.state_bytes import ITEMSIZE, of_network

MIB = 2**20


@dataclass(frozen=True)
class RunSizes:
    """Bytes.

    Attributes:
        source: where they are from, in words.
        hop: a message between pipeline stages, [s, b, n*C].
        dispatch: what a rank sends to the experts in one layer of a micro-batch; without experts as much as a hop.
        gradients: what a rank has reduced at the end of a step.
        checkpoint: one checkpoint; 0: not known.
        kept: how many of them are on the disk at once at most.
        dtype: the run's precision.
    """

    source: str = "without FILE"
    hop: int = 8 * MIB
    dispatch: int = 8 * MIB
    gradients: int = 64 * MIB
    checkpoint: int = 0
    kept: int = 0
    dtype: str | None = None


def of_run(config: Config, name: str) -> RunSizes:
    """Those of a configuration.

    Args:
        name: its file.

    Raises:
        ConfigError: the tokenizer, on which the vocabulary depends, cannot be read.
    """
    parallel, moe, item = config.parallel, config.moe, ITEMSIZE[config.training.dtype]
    tokens, width = micro_batch_tokens(config), config.model.hidden_size
    own = tokens // parallel.tensor
    hop = (own if parallel.sequence else tokens) * accounting.message_bytes(config.connection, width, item)
    whole = counts.whole_model(config)
    by_class = counts.parameters(config, whole)
    parameters, experts = by_class.total(), by_class["experts"]
    of_muon = counts.matrices(config, [whole], by_class).total()
    held = (parameters - experts) // parallel.tensor + experts // (parallel.expert * parallel.expert_tensor)
    size = of_network(config)
    return RunSizes(
        name,
        hop,
        own * moe.top_k * width * item if moe.experts else hop,
        held // parallel.pipeline * size.gradient,
        parameters * (size.weight + size.state) - of_muon * (size.state - of_network(config, "matrix").state),
        # the new one is whole before the oldest goes
        config.checkpoint.keep_last + 1 + len(config.checkpoint.keep_at),
        config.training.dtype,
    )
