"""FLOPs of a training step, from configuration alone.

Per trained token: 6 x active matmul parameters + 3 L s heads (d_qk + d_v), causal attention counted at half of the
s x s products, plus three times the connections' forward FLOPs. Against published rows of DeepSeek-V3 and Qwen3 the
formula without connections is within 0.4%.
"""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.connections import facts


def head_widths(config: Config) -> tuple[int, int]:
    """(d_qk, d_v): widths of one head's queries and keys, and of its values."""
    width = config.model.head_dim or config.model.hidden_size // config.model.heads
    return (width + config.mla.rope_dim if config.model.attention == "mla" else width), width


def attention_parameters(config: Config) -> int:
    """Matmul parameters of one layer's attention."""
    model, mla = config.model, config.mla
    C, heads = model.hidden_size, model.heads
    d_qk, d_v = head_widths(config)
    output = heads * d_v * C
    if model.attention == "gqa":
        groups = model.query_groups or heads
        return C * (heads * d_qk + groups * (d_qk + d_v)) + output
    queries = C * heads * d_qk if mla.q_rank is None else mla.q_rank * (C + heads * d_qk)
    latent = C * (mla.kv_rank + mla.rope_dim) + mla.kv_rank * heads * (d_qk - mla.rope_dim + d_v)
    return queries + latent + output


def mlp_parameters(config: Config, ffn_hidden_size: int) -> int:
    """Matmul parameters of one MLP, or of one expert."""
    return config.model.hidden_size * ffn_hidden_size * (3 if config.model.activation == "swiglu" else 2)


def active_matmul_parameters(config: Config, vocab_size: int) -> int:
    """Matmul parameters that one token passes: attention, dense MLPs or active experts, router and the LM head."""
    moe, layers = config.moe, config.model.layers
    moe_layers = max(0, layers - moe.first_dense) if moe.experts else 0
    expert = mlp_parameters(config, moe.ffn_hidden_size)
    return (
        layers * attention_parameters(config)
        + (layers - moe_layers) * mlp_parameters(config, config.model.ffn_hidden_size)
        + moe_layers * ((moe.top_k + moe.shared_experts) * expert + config.model.hidden_size * moe.experts)
        + config.model.hidden_size * vocab_size
    )


def training_flops_per_token(config: Config, vocab_size: int) -> float:
    """Forward and backward FLOPs of one token; recomputation is not counted, as MFU asks.

    Args:
        vocab_size: padded.
    """
    layers = config.model.layers
    attention = 3 * layers * config.data.sequence_length * config.model.heads * sum(head_widths(config))
    connections = 3 * 2 * layers * facts.flops(config.connection, config.model.hidden_size)
    return 6.0 * active_matmul_parameters(config, vocab_size) + attention + connections
