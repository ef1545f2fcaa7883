"""Attention; its core where Transformer Engine is absent is torch's scaled_dot_product_attention.

Megatron's own local core materialises the s x s scores and refuses MLA's unequal key and value widths.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hcmegatron.model.norms import RMSNormAcrossHeads
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class CoreAttention(MegatronModule):
    """softmax(Q K^T * scale + mask) V over the heads of one tensor-parallel rank."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale or 1.0 / math.sqrt(k_channels or config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attention of one micro-batch.

        Args:
            query: [s, b, heads, d_qk].
            key, value: [s, b, groups, d_qk] and [s, b, groups, d_v].
            attention_mask: None for causal attention, else boolean [b, 1, s, s], True where a key is hidden.

        Returns:
            [s, b, heads * d_v].
        """
        assert attention_bias is None and packed_seq_params is None
        s, b, heads, _ = query.shape
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        d_v = v.shape[-1]
        if d_v < q.shape[-1]:
            # One width for all three selects torch's fused kernels; the padding comes out as zeros.
            v = F.pad(v, (0, q.shape[-1] - d_v))
        dropout = self.dropout if self.training else 0.0
        rng = tensor_parallel.get_cuda_rng_tracker().fork() if dropout else _NO_CONTEXT
        with rng:
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if attention_mask is None else ~attention_mask,
                dropout_p=dropout,
                is_causal=attention_mask is None,
                scale=self.scale,
                enable_gqa=k.shape[1] != heads,
            )
        return out[..., :d_v].permute(2, 0, 1, 3).reshape(s, b, heads * d_v)


class Attention(SelfAttention):
    """GQA, with one norm over all heads of a query or key where the model asks for it.

    Args:
        norm_across_heads: model.qk_norm_across_heads.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: SelfAttentionSubmodules,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        norm_across_heads: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(config, submodules, layer_number, pg_collection=pg_collection, **others)
        if norm_across_heads:
            width, tp = config.kv_channels, pg_collection.tp
            queries = config.num_attention_heads // tp.size() * width
            keys = config.num_query_groups // tp.size() * width
            self.q_layernorm = RMSNormAcrossHeads(config, queries, tp)
            self.k_layernorm = RMSNormAcrossHeads(config, keys, tp)


class _NoContext:  # cheaper per call than a generator-based nullcontext
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


_NO_CONTEXT = _NoContext()
