"""Parameters of a model, from configuration alone, to the integer."""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.connections import facts
from hcmegatron.planner.flops import attention_parameters, head_widths, mlp_parameters


def total_parameters(config: Config, vocab_size: int) -> int:
    """Every parameter of the whole network, connections included. vocab_size: padded."""
    model, moe = config.model, config.moe
    expert_layers = moe_layers(config)
    per_layer = attention_parameters(config) + attention_norms(config) + 2 * norm_parameters(config)
    dense = (model.layers - expert_layers) * mlp_parameters(config, model.ffn_hidden_size)
    experts = expert_layers * moe_parameters(config, moe.experts)
    return (
        model.layers * per_layer
        + dense
        + experts
        + norm_parameters(config)
        + vocabulary_parameters(config, vocab_size)
        + connection_parameters(config)
    )


def active_parameters(config: Config, vocab_size: int) -> int:
    """Those that one token passes, without the input embedding, as the mHC paper counts them."""
    moe = config.moe
    idle = moe_layers(config) * (moe_parameters(config, moe.experts) - moe_parameters(config, moe.top_k))
    # Every routing weight is active: all scores are computed.
    idle -= moe_layers(config) * config.model.hidden_size * (moe.experts - moe.top_k)
    embedding = 0 if config.model.tie_embeddings else config.model.hidden_size * vocab_size
    return total_parameters(config, vocab_size) - idle - embedding


def moe_layers(config: Config) -> int:
    """How many layers have experts."""
    return max(0, config.model.layers - config.moe.first_dense) if config.moe.experts else 0


def norm_parameters(config: Config) -> int:
    """One norm of the stream's width."""
    kind, C = config.model.norm, config.model.hidden_size
    return 0 if kind.endswith("_plain") else C * (2 if kind == "layernorm" else 1)


def attention_norms(config: Config) -> int:
    """The norms inside one layer's attention: of MLA's latents, or of queries and keys."""
    model, mla = config.model, config.mla
    per_channel = {"rmsnorm": 1, "layernorm": 2}.get(model.norm, 0)
    width, _ = head_widths(config)
    if model.attention == "mla":
        return per_channel * (mla.kv_rank + (mla.q_rank or 0))
    if model.qk_norm_across_heads:
        return width * (model.heads + (model.query_groups or model.heads))
    return per_channel * 2 * width if model.qk_norm else 0


def moe_parameters(config: Config, experts: int) -> int:
    """One mixture with so many routed experts: router, routed and shared experts."""
    one = mlp_parameters(config, config.moe.ffn_hidden_size)
    return config.model.hidden_size * experts + (experts + config.moe.shared_experts) * one


def vocabulary_parameters(config: Config, vocab_size: int) -> int:
    """Embedding and output head."""
    return config.model.hidden_size * vocab_size * (1 if config.model.tie_embeddings else 2)


def connection_parameters(config: Config) -> int:
    """All connections (two a layer) and the contraction."""
    C = config.model.hidden_size
    of_one = facts.parameters(config.connection, C)
    return 2 * config.model.layers * of_one + facts.contract_parameters(config.connection, C)
