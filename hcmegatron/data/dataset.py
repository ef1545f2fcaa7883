"""Batches of packed text whose order is a function of the seed alone.

Documents, each closed by an end-of-document token, are laid end to end; window w is tokens w*S .. w*S+S, so
that every token but the first is a label once an epoch. Sample g of training, counted through all its steps, is
a window that order.py knows: neither the data-parallel size nor the micro-batch size changes which sequences a step
sees, and resuming needs the number of samples seen and nothing else, so that another batch size neither repeats nor
leaves out a sample.

S sequence length, b sequences of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from hcmegatron.config.schema import Data, Training
from hcmegatron.data.left_out import LeftOut, next_samples
from hcmegatron.data.order import Order
from hcmegatron.data.text import HeldOut, Text, Tokens, Windows

_COUNTED = 1 << 26  # training tokens that the unigram model is of, at most
# Tokens that are read and packed at once, at most: of small micro-batches many, for each pass over them costs the
# computing thread some 0.3 ms whatever their size.
_TOGETHER = 1 << 18


class Batches:
    """Training batches of one data-parallel rank.

    Attributes:
        left_out: of the data's order, what no step takes.
    """

    def __init__(
        self, text: Text, data: Data, training: Training, data_rank: int = 0, data_parallel: int = 1
    ) -> None:
        self.end, self.length = text.tokenizer.end_of_document, data.sequence_length
        self.global_batch, self.micro_batch = training.global_batch, training.micro_batch
        self.data_rank, self.data_parallel = data_rank, data_parallel
        names = [f"data.paths: the training text of {name}" for name in text.names]
        self.rows = Windows(names, text.training, self.length)
        self.windows = len(self.rows)  # sequences of one epoch
        sizes = self.rows.sizes if text.weights else [self.windows]
        self.order = Order(sizes, data.seed, text.weights)
        self.micro_batches = self.global_batch // (self.micro_batch * data_parallel)
        self.left_out: LeftOut = ()
        self.together = max(1, _TOGETHER // (training.micro_batch * self.length))  # micro-batches
        self._packed: tuple[object, dict[str, torch.Tensor]] = (None, {})

    def samples(self, seen: int) -> Sequence[int]:
        """The global batch of the step after `seen` samples, by number in the whole training run."""
        return next_samples(seen, self.global_batch, self.left_out)

    def __call__(self, seen: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        """What this rank sees in a micro-batch (0 .. micro_batches-1) of the step after `seen` samples: see `pack_rows`
        and `numbers`."""
        return self.of_rank(self.data_rank, seen, micro_batch)

    def of_rank(self, data_rank: int, seen: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        """The same of another data-parallel rank."""
        place = micro_batch % self.together
        packed = self._read(data_rank, seen, micro_batch - place)
        own = slice(place * self.micro_batch, (place + 1) * self.micro_batch)
        first = self._samples(data_rank, seen, micro_batch)[0]
        return {name: tensor[own] for name, tensor in packed.items()} | {"first_sample": first}

    def _read(self, data_rank: int, seen: int, first: int) -> dict[str, torch.Tensor]:
        """Micro-batches `first` to `first + together`, as far as the step has them, one after another; kept until
        others are asked for, for a rank's chunks read the same."""
        asked = (data_rank, seen, first, self.left_out)
        if self._packed[0] != asked:
            numbers = range(first, min(first + self.together, self.micro_batches))
            samples = [sample for number in numbers for sample in self._samples(data_rank, seen, number)]
            if self.rows.mapped:
                for number in numbers:  # of the next step
                    for sample in self._samples(data_rank, seen + self.global_batch, number):
                        self.rows.ahead(self.window(sample))
            rows = np.stack([self.rows[self.window(sample)] for sample in samples])
            self._packed = (asked, pack_rows(rows, self.end))
        return self._packed[1]

    def numbers(self, seen: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        """What is known of a micro-batch without reading it: first_sample, which sample of the whole training run its
        first one is."""
        return {"first_sample": self._samples(self.data_rank, seen, micro_batch)[0]}

    def window(self, sample: int) -> int:
        """The window that is the sample-th of the whole training run."""
        source, window = self.order(sample)
        return int(self.rows.begins[source]) + window

    def _samples(self, data_rank: int, seen: int, micro_batch: int) -> Sequence[int]:
        first = (micro_batch * self.data_parallel + data_rank) * self.micro_batch
        return self.samples(seen)[first : first + self.micro_batch]


class Validation:
    """A fixed set of held-out windows, spread evenly over the held-out text and the same at every evaluation; or, of a
    test set, all windows.

    `nats_per_byte` is exact for these windows: all their labels' losses, ends of documents included, over the
    number of bytes among the labels. The last micro-batch is filled up with windows whose loss mask is zero.
    """

    def __init__(
        self,
        text: Text,
        data: Data,
        training: Training,
        data_rank: int = 0,
        data_parallel: int = 1,
        source: int = 0,
        test: bool = False,
    ) -> None:
        held: HeldOut = (text.test if test else text.held_out)[source]
        self.name, self.end, self.training = held.name, text.tokenizer.end_of_document, text.training
        self.length, self.micro_batch = data.sequence_length, training.micro_batch
        named, remedy = f"data.{'test' if test else 'validation'}: {held.name}", "give more text"
        if not held.own_set:
            named = f"data.paths: the held-out text of {held.name}"
            remedy = "give more text, a larger data.holdout, prepared data of its own as data.validation"
        self.rows = Windows([named], [held.tokens], self.length, remedy)
        there = len(self.rows)
        wanted = there if test else -(-training.eval_batches * training.global_batch // len(text.held_out))
        count = min(there, wanted)
        self.windows = [index * there // count for index in range(count)]
        share = self.micro_batch * data_parallel
        self.micro_batches = -(-count // share)
        self.data_rank, self.data_parallel = data_rank, data_parallel
        self.tokenizer, self.byte_ratio = text.tokenizer, held.byte_ratio

    def __call__(self, micro_batch: int) -> dict[str, torch.Tensor]:
        """What this rank sees in a micro-batch (0 .. micro_batches-1). See `pack_rows`."""
        first = (micro_batch * self.data_parallel + self.data_rank) * self.micro_batch
        windows = self.windows[first : first + self.micro_batch]
        padding = self.micro_batch - len(windows)
        batch = pack_rows(np.stack([self.rows[window] for window in windows + [0] * padding]), self.end)
        batch["loss_mask"][len(windows) :] = 0
        return batch

    @cached_property
    def counts(self) -> np.ndarray:
        """[vocab_size], of the labels. Read where it is asked for: not on stages in the middle."""
        labels = np.concatenate([self.rows[window][1:] for window in self.windows])
        return np.bincount(labels, minlength=self.tokenizer.vocab_size)

    @cached_property
    def bytes(self) -> float:
        """Of text, among the labels."""
        return int(self.counts @ self.tokenizer.bytes_of) * self.byte_ratio

    def nats_per_byte(self, total_loss: float) -> float:
        """From the sum over all ranks and micro-batches of loss x loss mask."""
        return total_loss / self.bytes

    @cached_property
    def uniform(self) -> float:
        """Nats a byte of a model to which every token is as likely."""
        return self.nats_per_byte(float(self.counts.sum()) * math.log(len(self.counts)))

    @cached_property
    def unigram(self) -> float:
        """Nats a byte of a model that knows how often each token occurs in the training text (plus one)."""
        counts = 1 + sum(_counts(tokens, len(self.counts), len(self.training)) for tokens in self.training)
        return self.nats_per_byte(float(self.counts @ -np.log(counts / counts.sum())))


def pack_rows(rows: np.ndarray, end: int) -> dict[str, torch.Tensor]:
    """Rows of tokens [b, S + 1] as tensors on the CPU, each [b, S].

    tokens, labels, position_ids int64; loss_mask float32, all ones; document_ids int64, counted from 0 within
    the sequence, where an end-of-document token still belongs to the document it ends.
    """
    rows = rows.astype(np.int64)
    inputs = np.ascontiguousarray(rows[:, :-1])
    ends = inputs == end
    return {
        "tokens": torch.from_numpy(inputs),
        "labels": torch.from_numpy(np.ascontiguousarray(rows[:, 1:])),
        "loss_mask": torch.ones(inputs.shape, dtype=torch.float32),
        "position_ids": torch.arange(inputs.shape[1]).expand(inputs.shape).contiguous(),
        "document_ids": torch.from_numpy(np.cumsum(ends, axis=1) - ends),
    }


def _counts(tokens: Tokens, vocab_size: int, sources: int) -> np.ndarray:
    """How often each token occurs: among all, or in stretches spread evenly over what is too long to be counted."""
    stretch = 1 << 22  # bincount widens to int64
    most = max(1, _COUNTED // stretch // sources)
    begins = range(0, len(tokens), max(stretch, -(-len(tokens) // most)))
    return sum(np.bincount(tokens[at : at + stretch], minlength=vocab_size) for at in begins)
