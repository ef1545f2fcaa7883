"""Norms of the local implementation: with or without parameters, and correct under sequence parallelism. NVIDIA apex's
fused kernels compute them where it is installed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hcmegatron.platform.megatron import make_sharded_tensors_for_checkpoint
from hcmegatron.platform.optional import fused_norms
from megatron.core.transformer.transformer_config import TransformerConfig


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension.

    Megatron's wrapper of torch's norms refuses sequence parallelism; this one marks its parameters, so that Megatron
    sums their gradients over the tensor-parallel ranks.

    Args:
        kind: rmsnorm, layernorm, or either with `_plain`: without parameters (OLMo).
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, kind: str = "rmsnorm", **_: object
    ) -> None:
        super().__init__()
        self.shape, self.eps = (hidden_size,), eps
        self.centred = kind.startswith("layernorm")
        dtype = config.params_dtype
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if not kind.endswith("_plain"):
            self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype))
            self.weight.sequence_parallel = config.sequence_parallel
            if self.centred:
                self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=dtype))
                self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        apex = fused_norms() if _fits(x, self.weight) else None
        if apex is not None and self.centred:
            return apex.fused_layer_norm_affine(x, self.weight, self.bias, self.shape, self.eps)
        if apex is not None:
            return apex.fused_rms_norm_affine(x, self.weight, self.shape, self.eps)
        if self.centred:
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.shape, self.weight, self.eps)


def _fits(x: Tensor, weight: Tensor | None) -> bool:
    """Whether apex's norms can take it: one precision, of at most 32 bits, on CUDA. Their gradients are autograd's,
    in the input's backward, whoever splits it."""
    return weight is not None and x.is_cuda and x.dtype == weight.dtype and x.dtype is not torch.float64


class RMSNormAcrossHeads(nn.Module):
    """RMSNorm over all heads of a query or key together (OLMo2, OLMoE), of which a rank has some.

    Args:
        width: heads * head_dim of this rank.
        tp_group: ranks that have the other heads, and their part of the weight.
    """

    def __init__(self, config: TransformerConfig, width: int, tp_group: dist.ProcessGroup) -> None:
        super().__init__()
        self.eps, self.tp_group = config.layernorm_epsilon, tp_group
        self.weight = nn.Parameter(torch.ones(width, dtype=config.params_dtype))
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, 0

    def forward(self, x: Tensor) -> Tensor:
        """x [s, b, heads, head_dim] of this rank -> the same shape."""
        wide = x.flatten(2).float()
        square = wide.square().sum(-1, keepdim=True)
        if self.tp_group.size() > 1:
            square = _SumOverRanks.apply(square, self.tp_group)
        rms = torch.rsqrt(square / (wide.shape[-1] * self.tp_group.size()) + self.eps)
        return (wide * rms * self.weight).to(x.dtype).view_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The weight over all heads, of which this rank has a part."""
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(
            state,
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, each of which uses it: so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
