"""The micro-batches of one step, on the device, for one chunk of the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import torch
from torch import Tensor

from hcmegatron.platform.distributed import device
from hcmegatron.platform.transfer import to_device

# What is yielded for one micro-batch: tokens, labels, loss_mask, position_ids [b, s], and optionally
# attention_mask [b, 1, s, s] and, in training, first_sample: the number of its first sequence in the whole run.
MicroBatchTensors = dict[str, Tensor | int]
TENSORS = {"tokens", "position_ids", "labels", "loss_mask", "document_ids"}  # what is read from the data


class ChunkEnds(Protocol):
    """What decides which tensors a chunk reads: whether it has the embedding, and whether it has the loss."""

    pre_process: bool
    post_process: bool


class Feed(Iterator[MicroBatchTensors]):
    """Micro-batches of one step, from number `first` on, with the time spent waiting for them: on the device, what a
    chunk uses of them."""

    def __init__(
        self,
        make: Callable[[int], MicroBatchTensors],
        document_mask: bool,
        first: int = 0,
        unused: Collection[str] = (),
    ) -> None:
        self.make, self.document_mask, self.unused = make, document_mask, unused
        self.index, self.waited = first, 0.0

    def rewind(self) -> None:
        """Begin again with micro-batch 0."""
        self.index = 0

    def __next__(self) -> MicroBatchTensors:
        start = time.perf_counter()
        batch = {
            name: to_device(value, device()) if isinstance(value, Tensor) else value
            for name, value in self.make(self.index).items()
            if name not in self.unused
        }
        if self.document_mask:
            batch["attention_mask"] = document_mask(batch["document_ids"])
        self.index += 1
        self.waited += time.perf_counter() - start
        return batch


def document_mask(documents: Tensor) -> Tensor:
    """Hidden keys [b, 1, s, s]: later ones, and those of another document. documents: [b, s]."""
    s = documents.shape[1]
    later = torch.ones(s, s, dtype=torch.bool, device=documents.device).triu(1)
    return (later | (documents[:, :, None] != documents[:, None, :]))[:, None]


def unused_tensors(chunk: ChunkEnds, document_mask: bool) -> set[str]:
    """What a chunk does not use of a micro-batch: only the first stage reads tokens, only the last has a loss."""
    names = set() if document_mask else {"document_ids"}
    if not chunk.pre_process:
        names |= {"tokens", "position_ids"}
    if not chunk.post_process:
        names |= {"labels", "loss_mask"}
    return names


def filled_up(make: Callable[[int], MicroBatchTensors], count: int) -> Callable[[int], MicroBatchTensors]:
    """`make`, which has `count` micro-batches, for a schedule that needs more: the last comes again, without weight."""

    def more(index: int) -> MicroBatchTensors:
        batch = make(min(index, count - 1))
        if index >= count:
            batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
        return batch

    return more
