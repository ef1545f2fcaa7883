"""Megatron's own schedules with messages as wide as the streams."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from hcmegatron.config.schema import Parallel
from hcmegatron.model.execution import Execution, running
from megatron.core.pipeline_parallel import get_forward_backward_func


def widen_messages(chunks: list[nn.Module], width: int) -> None:
    """Give the outermost wrapper of every chunk a configuration whose hidden_size is the width of a message.

    Megatron's schedules size their receive buffers from `hidden_size` of the configuration that they find first,
    which is the wrapper's; the layers keep theirs, with C. Both refer to the same functions and flags otherwise, so
    this comes after everything else has been set on the configuration.
    """
    for chunk in chunks:
        wide = copy.copy(chunk.config)
        wide.hidden_size = width
        chunk.config = wide


def megatron_schedule(parallel: Parallel, execution: Execution) -> Callable:
    """1F1B, interleaved 1F1B, or no pipelining, as the layout asks; a forward_backward_func of Megatron's contract.

    Args:
        execution: how the chunks' nodes are run.
    """
    theirs = get_forward_backward_func(parallel.pipeline, parallel.virtual)

    def forward_backward(*, forward_step_func: Callable, **others: Any) -> list:
        def step(batches: Iterator, chunk: nn.Module, *more: Any) -> tuple[Tensor, Callable]:
            return forward_step_func(batches, running(chunk, execution), *more)

        return theirs(forward_step_func=step, **others)

    return forward_backward
