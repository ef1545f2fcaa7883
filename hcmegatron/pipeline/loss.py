"""One micro-batch through a chunk, in Megatron's contract for schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from hcmegatron.model.gpt import ConnectionGPT

# What the data room yields for one micro-batch: tokens, labels, loss_mask, position_ids [b, s], and optionally
# attention_mask [b, 1, s, s] and, in training, first_sample: the number of its first sequence in the whole run.
MicroBatchTensors = dict[str, Tensor | int]


def token_loss(loss_mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The summed loss of one micro-batch; the mean is taken over the tokens of the whole global batch.

    Args:
        loss_mask: [b, s], 1 where a token counts.
        losses: [b, s], nats.

    Returns:
        (sum, number of tokens, {"loss": [sum, number]} for the log), as Megatron's schedules want them.
    """
    total = (losses * loss_mask).sum()
    tokens = loss_mask.sum()
    return total, tokens.int(), {"loss": torch.stack([total.detach(), tokens.to(total.dtype)])}


def forward_step(
    batches: Iterator[MicroBatchTensors], chunk: nn.Module
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Megatron's forward_step_func: the next micro-batch through `chunk`, and what turns its output into a loss."""
    batch = next(batches)
    output = chunk(
        batch.get("tokens"),
        batch.get("position_ids"),
        batch.get("attention_mask"),
        labels=batch.get("labels"),
        first_sample=batch.get("first_sample"),
    )
    return output, partial(token_loss, batch.get("loss_mask"))


def unused(chunk: ConnectionGPT, document_mask: bool) -> set[str]:
    """What a chunk does not use of a micro-batch: only the first stage reads tokens, only the last has a loss."""
    names = set() if document_mask else {"document_ids"}
    if not chunk.pre_process:
        names |= {"tokens", "position_ids"}
    if not chunk.post_process:
        names |= {"labels", "loss_mask"}
    return names
