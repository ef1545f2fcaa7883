"""Multi-head latent attention with local linears, right under tensor parallelism."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.model.separate_wgrad import deferrable_linear
from hcmegatron.model.wgrad_store import Separable
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig

_SPECIFIED = ("linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "q_layernorm", "kv_layernorm")


class NormedLatents(MLASelfAttention):
    """MLA built as its specification says, norms of the latents included.

    0.19.2 would refuse those norms where the configuration's `qk_layernorm` is off, and where it is on has their
    gradients summed over tensor-parallel ranks, each of which has the latents whole. 0.16.1 takes the specification.
    """

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, Any]:
        """0.19.2's hook: what to build."""
        return {name: getattr(submodules, name) for name in _SPECIFIED}


class LatentAttention(NormedLatents):
    """MLA whose down-projection of keys and values every tensor-parallel rank computes whole.

    Megatron splits the columns of a local one, rotary key included. All heads share that key, so that its gradient
    is a sum over the ranks' heads, and Megatron's gather of the columns does not sum in backward.
    """

    def __init__(self, config: MLATransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.linear_kv_down_proj = KeyValueDownProjection(config, self.tp_group)


class KeyValueDownProjection(nn.Module, Separable):
    """x [s, b, C] -> [s, b, kv_rank + rope]: the latent of keys and values, and the rotary key of all heads."""

    def __init__(self, config: MLATransformerConfig, tp_group: dist.ProcessGroup) -> None:
        super().__init__()
        self.widths = (config.kv_lora_rank, config.qk_pos_emb_head_dim)
        self.sequence_parallel, self.tp_group = config.sequence_parallel, tp_group
        shape = (sum(self.widths), config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Megatron's contract for linears: (output, no bias)."""
        output = deferrable_linear(x, self.weight, self.store)
        if self.sequence_parallel or self.tp_group.size() == 1:
            return output, None  # Megatron gathers the key's sequence, and sums in that backward
        latent, key = output.split(self.widths, -1)
        # The latent's gradient is whole: the column-parallel up-projection sums it.
        return torch.cat([latent, _SumGradient.apply(key, self.tp_group)], -1), None


class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is summed over ranks. (Megatron's loses the sum of a gradient with gaps in memory.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
