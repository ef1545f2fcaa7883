"""What one pipeline stage sends to the next: the streams, and behind them what they are read with there.

A message is one tensor [s, b, width], of the streams' precision: n C numbers a token, and where the kind is single-pass
the n of `pre`, fp32 whatever the streams are. They travel as they are in memory, so that nothing is rounded on the way:
in a message of 16-bit numbers each takes two places. Gradients come back in the same form. Nothing adds messages or
their gradients up, which would not be the sum of what they stand for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hcmegatron.connections import accounting
from hcmegatron.connections.connection import compute_dtype
from hcmegatron.connections.kinds.descriptor import Settings
from hcmegatron.model.nodes import State


def message_width(conn: Settings, C: int, dtype: torch.dtype) -> int:
    """Numbers of a token in a message of dtype."""
    return accounting.message_bytes(conn, C, dtype.itemsize) // dtype.itemsize


def pack(streams: Tensor, *mix: Tensor) -> Tensor:
    """[s, b, n, C], and perhaps [s, b, n] in fp32 or better -> [s, b, width]; without copying where there is no mix."""
    flat = streams.flatten(2)
    return torch.cat([flat, *(_Reinterpreted.apply(m, flat.dtype) for m in mix)], -1) if mix else flat


def unpack(message: Tensor, n: int, C: int) -> State:
    """The other way."""
    streams = n * C
    if message.shape[-1] == streams:
        return (message.view(*message.shape[:-1], n, C),)
    # split, and not two slices: the gradients of those would be added
    H, mix = message.split([streams, message.shape[-1] - streams], -1)
    return H.unflatten(-1, (n, C)), _Reinterpreted.apply(mix, compute_dtype(message))


class _Reinterpreted(torch.autograd.Function):
    """The same memory as numbers of another precision, and its gradient back in the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        return x.contiguous().view(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous().view(ctx.dtype), None
