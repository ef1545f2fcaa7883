"""How losses are averaged: the one place for a micro-batch's sum, its weight, and what gradients are divided by.

A micro-batch gives a sum and a weight, here its tokens'. Its gradients are the sum's; when a step is finalised they are
divided by the weights of the whole global batch (Megatron's calculate_per_token_loss; runner.py's own schedules do the
same), and the loss that is logged is the sums over the weights. So whatever `token_loss` makes of a micro-batch, the
gradients are those of the loss in the log, for every layout and schedule (tests/training/test_loss.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.data.feed import MicroBatchTensors
from hcmegatron.platform.distributed import device


def token_loss(loss_mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The summed loss of one micro-batch; the mean is taken over the tokens of the whole global batch.

    Args:
        loss_mask: [b, s], 1 where a token counts.
        losses: [b, s], nats.

    Returns:
        (sum, weight, {"loss": [sum, weight, nats of all tokens that count]}), as Megatron's schedules want them; the
        weight is a whole number, by which they divide.
    """
    nats = (losses * loss_mask).sum()
    total, weight = nats, loss_mask.sum()
    reported = torch.stack([total.detach(), weight.to(total.dtype), nats.detach()])
    return total, weight.int(), {"loss": reported}


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


def summed(micro_batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """[sum, weight, nats] of this rank's micro-batches, in fp64."""
    sums = torch.zeros(3, dtype=torch.float64, device=device())
    for micro_batch in micro_batches:
        sums += micro_batch["loss"]
    return sums


def mean(sums: Tensor) -> float:
    """The loss of a step, from `summed` of every rank. Collective; sums are every rank's afterwards."""
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def total_nats(sums: Tensor, tensor_ranks: int) -> float:
    """Of all tokens that count, from `summed` of every rank: what held-out text is judged by. Collective."""
    dist.all_reduce(sums)
    # tensor-parallel ranks each hold the whole loss
    return sums[2].item() / tensor_ranks
