"""Weight gradients that can be left for later: dgrad in backward, wgrad when the schedule asks for it.

`separate_weight_gradients(chunk)` replaces the matmul of every Column- and RowParallelLinear (the output
layer included), the router's gating, and tells grouped experts. From then on

    with store.deferring():
        output.backward(gradient)       # I: input gradients only
    ...
    store.pop_and_run()                 # W of the oldest I

gives the gradients of a plain backward bit for bit, and a plain backward outside `deferring` still is one.
In 16 bits they are more exact than Megatron's, which rounds each micro-batch's gradient to 16 bits before it is added.
(A tied embedding is the exception: its two gradients are then added to the sum one by one instead of
together, which is rounding.)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.errors import ConfigError
from hcmegatron.model import te_wgrad
from hcmegatron.model.accumulate import add_product
from hcmegatron.model.wgrad_store import (
    Separable,
    WeightGradStore,
    gradient_for_autograd,
    mark_separable,
)
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.router import Router


def separate_weight_gradients(chunk: nn.Module, complete: bool = True) -> WeightGradStore:
    """Make the weight gradients of every linear, router and expert of `chunk` separable; return their store.

    Megatron's linears and routers have no way to be given another matmul, and build one another: they are told by
    assigning to `_forward_impl` and `gating`, here alone, and only under schedules that ask for it. The connections'
    projections stay in I: W would have to keep the n-wide stream for a few columns of work.

    Args:
        complete: the schedule has I and W. Otherwise layers of Transformer Engine that cannot separate theirs are left
            as they are.

    Raises:
        ConfigError: complete, and the chunk has such layers.
    """
    store = WeightGradStore()
    for module in chunk.modules():
        if te_wgrad.of_engine(module):
            if (reason := te_wgrad.separate(module, store)) and complete:
                raise ConfigError(
                    "a schedule that splits backward cannot separate the weight gradients of Transformer Engine's "
                    f"{type(module).__name__}: {reason}; use implementation: local"
                )
        elif isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module._forward_impl = partial(_linear, store)
        elif isinstance(module, Router):
            module.gating = partial(_gating, store, module)
        elif isinstance(module, Separable):
            module.store = store
    return store


def deferrable_linear(input: Tensor, weight: Tensor, store: WeightGradStore | None) -> Tensor:
    """input [..., in] @ weight [out, in]^T, whose weight gradient can be left in `store`."""
    return _Linear.apply(input, mark_separable(weight), store, None, False, None)


def _linear(
    store: WeightGradStore,
    *,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: dist.ProcessGroup | None,
    gtp_remat_size: int = 1,
    **others: Any,
) -> Tensor:
    """In place of Megatron's `_forward_impl`. input [s, b, in] or [tokens, in], weight [out, in]."""
    if gtp_remat_size != 1:  # 0.19.2: over how many ranks the weight itself is sharded
        others["gtp_remat_size"] = gtp_remat_size
    asked = [name for name, value in others.items() if value]
    assert not asked, f"separable linears do not know {asked}"
    group = tp_group if allreduce_dgrad or sequence_parallel else None
    output = _Linear.apply(input, mark_separable(weight), store, group, sequence_parallel, None)
    return output if bias is None else output + bias


def _gating(store: WeightGradStore, router: Router, input: Tensor) -> Tensor:
    """In place of a router's `gating`: logits [s, b, experts] in the router's dtype."""
    dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(router.config.moe_router_dtype, input.dtype)
    logits = _Linear.apply(input, mark_separable(router.weight), store, None, False, dtype)
    return logits if router.bias is None else logits + router.bias.to(dtype)


def _gather(input: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The whole sequence [s, ...] from each tensor-parallel rank's part of it."""
    whole = input.new_empty(input.shape[0] * group.size(), *input.shape[1:])
    dist.all_gather_into_tensor(whole, input.contiguous(), group=group)
    return whole


class _Linear(torch.autograd.Function):
    """input @ weight^T with the communication of a column-parallel linear, the same operations as Megatron's.

    Args of apply:
        group: tensor-parallel ranks over which the input's gradient is summed; None: nothing is communicated.
        sequence_parallel: the input is this rank's part of the sequence: gathered here, gradient scattered.
        dtype: of the matmuls, where it is not the tensors' (a router in fp32).
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        store: WeightGradStore | None,
        group: dist.ProcessGroup | None,
        sequence_parallel: bool,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.save_for_backward(input)
        # The leaf itself: hooks on saved tensors (recomputation) would give a copy that knows no gradient buffer.
        ctx.weight = weight
        ctx.store, ctx.group, ctx.sequence_parallel, ctx.dtype = store, group, sequence_parallel, dtype
        whole = _gather(input, group) if sequence_parallel else input
        return torch.matmul(whole.to(dtype or whole.dtype), weight.to(dtype or weight.dtype).t())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (input,), weight = ctx.saved_tensors, ctx.weight
        group, dtype = ctx.group, ctx.dtype
        grad_input, handle = None, None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output.matmul(weight.to(dtype or weight.dtype)).to(input.dtype)
            if ctx.sequence_parallel:
                summed = torch.empty_like(input, memory_format=torch.contiguous_format)
                handle = dist.reduce_scatter_tensor(
                    summed, grad_input.contiguous(), group=group, async_op=True
                )
                grad_input = summed
            elif group is not None:
                handle = dist.all_reduce(grad_input, group=group, async_op=True)

        grad_weight = None
        if ctx.needs_input_grad[1]:
            # Detached: a saved tensor would keep the graph of the layers before alive until W.
            source = input.detach()
            gather = group if ctx.sequence_parallel else None
            work = partial(_weight_gradient, source, grad_output, gather, dtype, weight.dtype)
            if ctx.store is None or ctx.store.open is None:
                grad_weight = gradient_for_autograd(weight, work)
            else:
                ctx.store.open.add(weight, work, source, grad_output)
        if handle is not None:
            handle.wait()
        return grad_input, grad_weight, None, None, None, None


def _weight_gradient(
    input: Tensor,
    grad_output: Tensor,
    gather: dist.ProcessGroup | None,
    dtype: torch.dtype | None,
    weight_dtype: torch.dtype,
    into: Tensor | None,
) -> Tensor | None:
    """grad_output^T @ input over all tokens, [out, in]."""
    whole = input if gather is None else _gather(input, gather)
    left = grad_output.reshape(-1, grad_output.shape[-1]).t()
    right = whole.reshape(-1, whole.shape[-1])
    right = right.to(dtype or right.dtype)
    if into is None:
        return left.matmul(right).to(weight_dtype)
    add_product(into, left, right)
    return None
