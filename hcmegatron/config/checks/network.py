"""The network: attention, experts, connections."""

from __future__ import annotations

from hcmegatron.config.checks.refusals import Shown, divisible, need, refuse
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.ranges import KERNEL_STREAMS
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.multiples import nearest_multiples


def check_network(config: Config, shown: Shown) -> None:
    """ConfigError where sizes of the network do not fit each other or the layout."""
    _attention(config, shown)
    _moe(config, shown)
    _connection(config, shown)


def _attention(config: Config, shown: Shown) -> None:
    m = config.model
    if m.head_dim is None:
        divisible(shown, "model.hidden_size", "model.heads")
    remedy = "use an even size, since rotary embeddings turn pairs"
    if m.attention == "mla":
        need(config.mla.rope_dim % 2 == 0, f"{shown('mla.rope_dim')} is odd", remedy)
        _latents(config, shown)
        return
    head_dim = m.head_dim or m.hidden_size // m.heads
    key = "model.head_dim" if m.head_dim else "model.hidden_size"
    need(head_dim % 2 == 0, f"{shown(key)} makes heads of odd size {head_dim}", remedy)
    if m.query_groups:
        divisible(shown, "model.heads", "model.query_groups")
    need(
        not (m.qk_norm and m.qk_norm_across_heads),
        f"{shown('model.qk_norm')} and {shown('model.qk_norm_across_heads')} are two norms of the same",
        "set one of them to false",
    )
    need(
        not m.qk_norm_across_heads or (m.query_groups or m.heads) % config.parallel.tensor == 0,
        f"{shown('model.qk_norm_across_heads')} with {shown('parallel.tensor')} needs a whole number of key "
        f"groups on every tensor rank, but {shown('model.query_groups')}",
        "use fewer tensor ranks",
    )


def _latents(config: Config, shown: Shown) -> None:
    """Megatron-Core's local layers split the columns of MLA's down-projections over tensor ranks."""
    if config.implementation == "te":
        return
    mla, tensor = config.mla, config.parallel.tensor
    width = mla.kv_rank + mla.rope_dim
    need(
        width % tensor == 0,
        f"{shown('mla.kv_rank')} + {shown('mla.rope_dim')} = {width} is not divisible by {shown('parallel.tensor')}",
        f"use an mla.kv_rank that makes the sum {nearest_multiples(width, tensor)}",
    )
    if mla.q_rank is not None:
        divisible(shown, "mla.q_rank", "parallel.tensor")


def _moe(config: Config, shown: Shown) -> None:
    moe, p = config.moe, config.parallel
    if not moe.experts:
        for key in ("parallel.expert", "parallel.expert_tensor"):
            need(
                shown.values[key] == 1,
                f"{shown(key)}, but {shown('moe.experts')}",
                f"set moe.experts, or {key}=1",
            )
        return
    need(
        moe.top_k <= moe.experts,
        f"{shown('moe.top_k')} is more than {shown('moe.experts')}",
        "a token chooses among the experts, so lower top_k",
    )
    need(
        moe.top_k > 1 or moe.router == "sigmoid",
        f"{shown('moe.top_k')} with {shown('moe.router')} weighs its one expert with 1: nothing to learn",
        "use moe.router=sigmoid",
    )
    need(
        moe.first_dense < config.model.layers,
        f"{shown('moe.first_dense')} of {shown('model.layers')} leaves no layer for experts",
        "lower it, or set moe.experts=0",
    )
    divisible(shown, "moe.experts", "parallel.expert")
    divisible(shown, "moe.ffn_hidden_size", "parallel.expert_tensor")
    if moe.shared_experts:
        wide = moe.shared_experts * moe.ffn_hidden_size
        need(
            wide % p.tensor == 0,
            f"{shown('moe.shared_experts')} x {shown('moe.ffn_hidden_size')} = {wide} is not divisible by "
            f"{shown('parallel.tensor')}, over which shared experts are split",
            f"use a multiple of {p.tensor} for one of them",
        )
    row = (
        8 if config.training.dtype == "bf16" else 4
    )  # numbers in the 16 bytes that a grouped matmul's rows align to
    width = moe.ffn_hidden_size // p.expert_tensor
    for key, size in (("moe.ffn_hidden_size", width), ("model.hidden_size", config.model.hidden_size)):
        need(
            not moe.grouped or config.training.dtype == "fp64" or size % row == 0,
            f"{shown(key)} with {shown('moe.grouped')} and {shown('training.dtype')}: on each rank it has to be a "
            f"multiple of {row}, not {size}",
            "change it, or set moe.grouped=false",
        )
    need(
        p.tensor == 1 or p.sequence,
        f"{shown('parallel.tensor')} with {shown('moe.experts')} needs sequence parallel in Megatron-Core",
        "set parallel.sequence=true",
    )


def _connection(config: Config, shown: Shown) -> None:
    if found := accounting.problem(config.connection, config.model.hidden_size, shown):
        refuse(*found)
    idle = ineffective(config)
    need(
        config.kernels not in ("triton", "native")
        or "kernels" in idle
        or config.connection.n <= KERNEL_STREAMS,
        f"{shown('kernels')} with {shown('connection.n')}: its kernels hold up to {KERNEL_STREAMS}",
        "use kernels=auto or torch, or fewer",
    )
    need(
        config.connection.rms_eps != "added" or "connection.rms_eps" in idle or config.model.norm_eps > 0,
        f"{shown('connection.rms_eps')} with {shown('model.norm_eps')} divides by 0 where a token is 0",
        "use connection.rms_eps=none, whose token of zeros is projected to 0, or raise model.norm_eps",
    )
