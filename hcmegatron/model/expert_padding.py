"""Tokens of experts with rows of zeros between them, so that every expert has one of a few numbers of rows.

On CPUs that multiply 16-bit numbers torch does so by oneDNN, which generates code for every shape that it meets,
which takes twenty times as long as such a product, and keeps it. How many tokens an expert gets changes with every
micro-batch.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from schedules.runtime.gpu import GPU

TILE = 16  # rows that a processor's matrix unit takes at once (Intel AMX), or does without


class Padded(NamedTuple):
    """tokens [R, C] and probs [R], with zeros in rows that are no token's; counts [E] of rows of every expert; places
    [T], the row of every token."""

    tokens: Tensor
    probs: Tensor
    counts: Tensor
    places: Tensor


def wanted(tokens: Tensor) -> bool:
    """Whether products of them are oneDNN's, in 16 bits."""
    return tokens.device.type == "cpu" and not GPU.holds(tokens) and by_onednn(tokens.dtype)


@functools.cache
def by_onednn(dtype: torch.dtype) -> bool:
    """Whether this processor's products in a 16-bit dtype are oneDNN's; no others are asked for."""
    ops = torch.ops.mkldnn
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype in asked and torch.backends.mkldnn.is_available() and bool(getattr(ops, asked[dtype])())


def rows(count: int) -> int:
    """The number of rows for `count` tokens: a multiple of TILE, and of an eighth of the next power of two."""
    step = max(TILE, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step


def padded(tokens: Tensor, probs: Tensor, counts: Tensor) -> Padded:
    """tokens [T, C] and probs [T], sorted by expert, of which each has counts [E]. Gradients go back to both."""
    own = counts.tolist()
    wide = torch.tensor([rows(count) for count in own])
    narrow = torch.tensor(own)
    shift = (wide.cumsum(0) - wide) - (narrow.cumsum(0) - narrow)  # of an expert's first token
    places = torch.arange(len(tokens)) + shift.repeat_interleave(narrow)
    total = int(wide.sum())
    # index_copy would keep what it copies for its backward
    return Padded(
        tokens.new_zeros(total, tokens.shape[1]).index_put_((places,), tokens),
        probs.new_zeros(total).index_put_((places,), probs),
        wide,
        places,
    )
