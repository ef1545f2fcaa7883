"""Batches of packed text whose order is a function of the seed alone.

Documents, each closed by an end-of-document token, are laid end to end; window w is tokens w*S .. w*S+S, so
that every token but the first is a label once an epoch. Sample g of training, counted through all its steps, is
a window of the epoch's permutation: neither the data-parallel size nor the micro-batch size changes which
sequences a step sees, and resuming needs the number of samples seen and nothing else, so that another batch size
neither repeats nor leaves out a sample.

S sequence length, b sequences of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.corpus import Corpus, Document
from hcmegatron.data.left_out import LeftOut, next_samples
from hcmegatron.data.tokenizer import Tokenizer


class Text:
    """The corpus as two arrays of tokens, train and heldout, in memory in the tokenizer's dtype."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.train = _tokens(corpus, corpus.train, tokenizer)
        self.heldout = _tokens(corpus, corpus.heldout, tokenizer)


class Batches:
    """Training batches of one data-parallel rank.

    Attributes:
        left_out: of the data's order, what no step takes.
    """

    def __init__(
        self, text: Text, data: Data, training: Training, data_rank: int = 0, data_parallel: int = 1
    ) -> None:
        self.tokens, self.end = text.train, text.tokenizer.end_of_document
        self.length, self.seed = data.sequence_length, data.seed
        self.global_batch, self.micro_batch = training.global_batch, training.micro_batch
        self.data_rank, self.data_parallel = data_rank, data_parallel
        self.windows = _windows("training", self.tokens, self.length)  # sequences of one epoch
        self.micro_batches = self.global_batch // (self.micro_batch * data_parallel)
        self.left_out: LeftOut = ()
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def samples(self, seen: int) -> Sequence[int]:
        """The global batch of the step after `seen` samples, by number in the whole training run."""
        return next_samples(seen, self.global_batch, self.left_out)

    def __call__(self, seen: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        """What this rank sees in a micro-batch (0 .. micro_batches-1) of the step after `seen` samples: see `pack`, and
        first_sample, which sample of the whole training run the first one is."""
        return self.of_rank(self.data_rank, seen, micro_batch)

    def of_rank(self, data_rank: int, seen: int, micro_batch: int) -> dict[str, torch.Tensor | int]:
        """The same of another data-parallel rank."""
        first = (micro_batch * self.data_parallel + data_rank) * self.micro_batch
        samples = self.samples(seen)[first : first + self.micro_batch]
        windows = [self.window(sample) for sample in samples]
        return pack(self.tokens, windows, self.length, self.end) | {"first_sample": samples[0]}

    def window(self, sample: int) -> int:
        """The window that is the sample-th of the whole training run."""
        epoch, place = divmod(sample, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.windows, self.seed, epoch)
        return int(self._order[place])


class Validation:
    """A fixed set of held-out windows, spread evenly over the held-out text and the same at every evaluation.

    `nats_per_byte` is exact for these windows: all their labels' losses, ends of documents included, over the
    number of bytes among the labels. The last micro-batch is filled up with windows whose loss mask is zero.
    """

    def __init__(
        self, text: Text, data: Data, training: Training, data_rank: int = 0, data_parallel: int = 1
    ) -> None:
        self.text, self.tokens, self.end = text, text.heldout, text.tokenizer.end_of_document
        self.length, self.micro_batch = data.sequence_length, training.micro_batch
        there = _windows("held-out", self.tokens, self.length)
        wanted = training.eval_batches * training.global_batch
        count = min(there, wanted)
        self.windows = [index * there // count for index in range(count)]
        share = self.micro_batch * data_parallel
        self.micro_batches = -(-count // share)
        self.data_rank, self.data_parallel = data_rank, data_parallel
        labels = [self.tokens[w * self.length + 1 : (w + 1) * self.length + 1] for w in self.windows]
        self.counts = np.bincount(
            np.concatenate(labels), minlength=text.tokenizer.vocab_size
        )  # of the labels
        self.bytes = int(self.counts @ text.tokenizer.bytes_of)

    def __call__(self, micro_batch: int) -> dict[str, torch.Tensor]:
        """What this rank sees in a micro-batch (0 .. micro_batches-1). See `pack`."""
        first = (micro_batch * self.data_parallel + self.data_rank) * self.micro_batch
        windows = self.windows[first : first + self.micro_batch]
        padding = self.micro_batch - len(windows)
        batch = pack(self.tokens, windows + [0] * padding, self.length, self.end)
        batch["loss_mask"][len(windows) :] = 0
        return batch

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
        parts = np.array_split(self.text.train, 1 + len(self.text.train) // 2**22)  # bincount widens to int64
        counts = 1 + sum(np.bincount(part, minlength=len(self.counts)) for part in parts)
        return self.nats_per_byte(float(self.counts @ -np.log(counts / counts.sum())))


def pack(tokens: np.ndarray, windows: list[int], length: int, end: int) -> dict[str, torch.Tensor]:
    """Windows of the token array as tensors on the CPU: see `pack_rows`."""
    return pack_rows(np.stack([tokens[w * length : (w + 1) * length + 1] for w in windows]), end)


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


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, from raw generator bits, which NumPy keeps the same from version to version."""
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(size), kind="stable")


def _windows(which: str, tokens: np.ndarray, length: int) -> int:
    """How many windows there are. ConfigError for none: a tokenizer makes fewer tokens of a text than it has bytes."""
    if len(tokens) <= length:
        raise ConfigError(
            f"data.paths: the {which} text has {len(tokens)} tokens, fewer than data.sequence_length + 1 = "
            f"{length + 1}; give more text or a shorter sequence"
        )
    return (len(tokens) - 1) // length


def _tokens(corpus: Corpus, documents: tuple[Document, ...], tokenizer: Tokenizer) -> np.ndarray:
    """All documents, each followed by its end."""
    # at most: it may make fewer tokens of a text than it has bytes
    tokens = np.empty(sum(document.tokens for document in documents), tokenizer.dtype)
    at = 0
    for raw in corpus.read(documents):
        ids = tokenizer.encode(raw)
        tokens[at : at + len(ids)] = ids
        tokens[at + len(ids)] = tokenizer.end_of_document
        at += len(ids) + 1
    return tokens[:at]
