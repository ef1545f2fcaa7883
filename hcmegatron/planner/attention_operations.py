"""Attention's operations: GQA and MLA."""

from __future__ import annotations

from dataclasses import replace

from hcmegatron.planner.layers import head_widths
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.operation import Operation, is_local, linear, sizes, split
from hcmegatron.planner.rates import BACKWARD_OF_ATTENTION, Rates


def attention(layout: Layout, rates: Rates) -> list[Operation]:
    """Projections, the core, and what is between them."""
    config, size = layout.config, sizes(layout.config)
    model, mla, t = config.model, config.mla, config.parallel.tensor
    C, T, z = model.hidden_size, size.tokens, size.itemsize
    d_qk, d_v = head_widths(config)
    heads = model.heads / t
    if model.attention == "mla":
        latent = mla.kv_rank + mla.rope_dim
        inputs = [linear(rates, "kv down", "attention", size, T, latent, C)]
        up = heads * (d_qk - mla.rope_dim + d_v)
        inputs.append(linear(rates, "kv up", "attention", size, T, up, mla.kv_rank, "mla_up_proj"))
        if mla.q_rank is None:
            inputs.append(linear(rates, "q", "attention", size, T, heads * d_qk, C, "mla_up_proj"))
        else:
            inputs.append(linear(rates, "q down", "attention", size, T, mla.q_rank, C))
            inputs.append(
                linear(rates, "q up", "attention", size, T, heads * d_qk, mla.q_rank, "mla_up_proj")
            )
        latents = 2 * mla.kv_rank + mla.rope_dim + 2 * (mla.q_rank or 0)
        left = mla.kv_rank + (mla.q_rank or 0)
        inputs.append(Operation("latents", "attention", kept=latents * T * z, left=left * T * z))
        # torch's fused attention wants one width: it gets and keeps padded values, and what comes out is padded too
        padded = is_local(config, rates.assumptions) and d_v < d_qk
        v, module, core_keeps = d_qk if padded else d_v, "mla_up_proj", 2 * heads * d_qk if padded else 0.0
        width = heads * (2 * d_qk + v)
        kept = heads * (2 * d_qk + (0 if padded else d_v)) * z
        if "core_attn" in config.recompute.modules:  # which runs again from queries, keys and values
            kept = heads * (2 * d_qk + d_v) * z
    else:
        groups = max(1, (model.query_groups or model.heads) / t)
        v, module, core_keeps = d_v, "", 0.0
        width = heads * d_qk + groups * (d_qk + d_v)
        inputs = [linear(rates, "qkv", "attention", size, T, width, C)]
        # values are a view of the projection's output, which therefore stays beside the turned queries and keys
        kept = (width + (heads + groups) * d_qk) * z
        if model.qk_norm_across_heads:
            kept += 8 * (heads + groups) * d_qk  # in fp32, before and after its scaling
    # cosines and sines by which queries and keys are turned, of every position, once for each
    angles = 4 * (mla.rope_dim if model.attention == "mla" else d_qk) * config.data.sequence_length * z
    turned = Operation(  # rotary embeddings, norms of queries and keys, their assembly: read and written once
        "q, k, v",
        "attention",
        module=module,
        forward=rates.memory(2 * width * T * z),
        dgrad=rates.memory(2 * width * T * z),
        kept=kept * T + angles,
    )
    scores = T * config.data.sequence_length * heads * (d_qk + v)
    core = Operation(
        "core",
        "attention",
        module="core_attn",
        forward=rates.attention(scores),
        dgrad=BACKWARD_OF_ATTENTION * rates.attention(scores),
        kept=(4 * heads + core_keeps * z) * T,
        transient=width * T * z,
    )
    out = heads * d_v
    projection = replace(
        linear(rates, "projection", "attention", size, T, C, out), kept=out * T * z, left=(out + C) * T * z
    )
    return [*inputs, turned, core, projection, split(layout, rates, "attention")]
