"""What a layer does on one rank for one micro-batch: every operation with its times and with the bytes that it keeps.

Times are seconds of forward, input gradient and weight gradient. Bytes are those that autograd holds until backward
(`kept`), those that a deferred weight gradient holds from I to W (`left`), and those that exist only while the
operation runs (`transient`). Tokens T of a micro-batch; with sequence parallelism what is C wide is held in T / t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hcmegatron.config.ranges import TRITON_STREAMS
from hcmegatron.config.schema import Config
from hcmegatron.connections import facts
from hcmegatron.planner.counts import is_moe, padded_vocabulary
from hcmegatron.planner.flops import head_widths
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.rates import BACKWARD_OF_ATTENTION, Rates
from schedules.nodes import Role

Family = Literal["compute", "connections", "all-to-all", "tensor parallel"]
ITEMSIZE = {"bf16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Operation:
    """One operation of a layer, an embedding or a head.

    Attributes:
        module: what recomputation calls it: connection, core_attn, mla_up_proj, mlp, shared_experts; else empty.
        again: seconds of its forward, run again in backward.
    """

    name: str
    role: Role
    family: Family = "compute"
    module: str = ""
    forward: float = 0.0
    dgrad: float = 0.0
    wgrad: float = 0.0
    again: float = 0.0
    kept: float = 0.0
    left: float = 0.0
    transient: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """Of a micro-batch on a rank: T tokens, of which `local` where the sequence is split; bytes of an element."""

    tokens: int
    local: float
    itemsize: int


def sizes(config: Config) -> Sizes:
    """Of a configuration."""
    tokens = config.training.micro_batch * config.data.sequence_length
    local = tokens / config.parallel.tensor if config.parallel.sequence else tokens
    return Sizes(tokens, local, ITEMSIZE[config.training.dtype])


def folds(config: Config) -> bool:
    """Whether a sub-layer's write also makes the next one's projection (kernels on a GPU, mHC)."""
    conn = config.connection
    return conn.kind == "mhc" and config.kernels != "torch" and conn.n <= TRITON_STREAMS


def connection_traffic(config: Config) -> tuple[float, float]:
    """Elements of C that one token moves through one connection, (forward, backward), with w streams.

    mHC: read 2w+1 (x is read twice; w+1 where the projection is folded into the write before), write 2w+1; backward
    3w+2 and 4w+2. At w = 4: 18 (14 folded) and 32. HC and FC with dynamic weights are taken alike, static ones read
    the streams once. Without Triton, plain torch moves about twice as much (assumed). A residual adds: 3 and 3.
    """
    conn, w = config.connection, facts.streams(config.connection)
    if conn.kind == "residual":
        return 3, 3
    once = folds(config) or conn.kind in ("shc", "sfc")
    forward = (w + 1 if once else 2 * w + 1) + (2 * w + 1)
    backward = (3 * w + 2) + (3 * w + 1 if conn.kind in ("shc", "sfc") else 4 * w + 2)
    unfused = 1 if config.kernels != "torch" else 2
    return unfused * forward, unfused * backward


def layer_operations(layout: Layout, rates: Rates, layer: int) -> list[Operation]:
    """Of one layer, with the recomputation that the configuration asks for."""
    config = layout.config
    attention = _attention(layout, rates)
    rest = _experts(layout, rates) if is_moe(config, layer) else _dense(layout, rates)
    # What surrounds a mixture of experts runs with the nodes before the dispatch and after the combine; here all of it
    # is taken as before, on the compute lane.
    second: Role = "attention" if is_moe(config, layer) else "experts"
    operations = [*_around(config, rates, "attention"), *attention, *_around(config, rates, second), *rest]
    return [_recomputed(config, operation) for operation in operations]


def _recomputed(config: Config, operation: Operation) -> Operation:
    """With what recomputation does to it. `block` and `full` keep what their plan says (see activations)."""
    mode = config.recompute.mode
    again = (
        mode == "full"
        or (mode == "block" and operation.module == "connection")
        or (mode in ("block", "selective") and operation.module in config.recompute.modules)
    )
    return replace(operation, again=operation.forward, kept=0.0) if again else operation


def _around(config: Config, rates: Rates, role: Role) -> list[Operation]:
    """Connection and norm of one sub-layer."""
    size, C, conn = sizes(config), config.model.hidden_size, config.connection
    element = C * size.itemsize * size.local
    forward, backward = connection_traffic(config)
    residual = conn.kind == "residual"
    share = rates.assumptions.elementwise if residual else rates.assumptions.kernels
    return [
        Operation(
            "connection",
            role,
            "connections",
            "connection",
            forward=rates.memory(forward * element, share),
            dgrad=rates.memory(backward * element, share),
            kept=facts.saved_bytes(conn, C, size.itemsize) * size.local + element,
            transient=2 * facts.streams(conn) * element,
        ),
        Operation(
            "norm",
            role,
            module="connection",
            forward=rates.memory(2 * element),
            dgrad=rates.memory(3 * element),
            kept=element,
            left=element,
        ),
        # the write keeps the sub-layer's output; a residual's sum needs it no more
        Operation("output", role, kept=0 if residual else element),
    ]


def _linear(
    rates: Rates,
    name: str,
    role: Role,
    size: Sizes,
    rows: float,
    out: float,
    into: float,
    module: str = "",
    groups: int = 1,
) -> Operation:
    """rows x into -> rows x out. The input, where it is a norm's output, is counted there."""
    z = size.itemsize
    return Operation(
        name,
        role,
        module=module,
        forward=rates.matmul(rows, out, into, z, groups),
        dgrad=rates.matmul(rows, into, out, z, groups),
        wgrad=rates.weight_gradient(rows, out, into, z, groups),
        left=rows * out * z,
    )


def _split(layout: Layout, rates: Rates, role: Role) -> Operation:
    """Tensor parallelism around a sub-layer: gather and scatter (or one all-reduce), both ways."""
    config, size = layout.config, sizes(layout.config)
    whole = size.tokens * config.model.hidden_size * size.itemsize
    once = rates.ring(whole, layout.tensor_group)
    return Operation("tensor parallel", role, "tensor parallel", forward=2 * once, dgrad=2 * once)


def _attention(layout: Layout, rates: Rates) -> list[Operation]:
    config, size = layout.config, sizes(layout.config)
    model, mla, t = config.model, config.mla, config.parallel.tensor
    C, T, z = model.hidden_size, size.tokens, size.itemsize
    d_qk, d_v = head_widths(config)
    heads = model.heads / t
    if model.attention == "mla":
        latent = mla.kv_rank + mla.rope_dim
        inputs = [_linear(rates, "kv down", "attention", size, T, latent, C)]
        up = heads * (d_qk - mla.rope_dim + d_v)
        inputs.append(_linear(rates, "kv up", "attention", size, T, up, mla.kv_rank, "mla_up_proj"))
        if mla.q_rank is None:
            inputs.append(_linear(rates, "q", "attention", size, T, heads * d_qk, C, "mla_up_proj"))
        else:
            inputs.append(_linear(rates, "q down", "attention", size, T, mla.q_rank, C))
            inputs.append(
                _linear(rates, "q up", "attention", size, T, heads * d_qk, mla.q_rank, "mla_up_proj")
            )
        latents = 2 * mla.kv_rank + mla.rope_dim + 2 * (mla.q_rank or 0)
        inputs.append(Operation("latents", "attention", kept=latents * T * z, left=mla.kv_rank * T * z))
        width, module = heads * (2 * d_qk + d_v), "mla_up_proj"
    else:
        groups = max(1, (model.query_groups or model.heads) / t)
        width, module = heads * d_qk + groups * (d_qk + d_v), ""
        inputs = [_linear(rates, "qkv", "attention", size, T, width, C)]
    turned = Operation(  # rotary embeddings, norms of queries and keys, their assembly: read and written once
        "q, k, v",
        "attention",
        module=module,
        forward=rates.memory(2 * width * T * z),
        dgrad=rates.memory(2 * width * T * z),
        kept=width * T * z,
    )
    scores = T * config.data.sequence_length * heads * (d_qk + d_v)
    core = Operation(
        "core",
        "attention",
        module="core_attn",
        forward=rates.attention(scores),
        dgrad=BACKWARD_OF_ATTENTION * rates.attention(scores),
        kept=4 * heads * T,
        transient=width * T * z,
    )
    out = heads * d_v
    projection = replace(
        _linear(rates, "projection", "attention", size, T, C, out), kept=out * T * z, left=(out + C) * T * z
    )
    return [*inputs, turned, core, projection, _split(layout, rates, "attention")]


def _mlp(
    rates: Rates, name: str, role: Role, size: Sizes, C: int, width: float, gated: bool, module: str
) -> list[Operation]:
    gates, T, z, fused = 2 if gated else 1, size.tokens, size.itemsize, rates.assumptions.fused
    moved = (3, 5) if fused or not gated else (5, 8)
    return [
        _linear(rates, f"{name} 1", role, size, T, gates * width, C, module),
        Operation(
            f"{name} activation",
            role,
            module=module,
            forward=rates.memory(moved[0] * width * T * z),
            dgrad=rates.memory(moved[1] * width * T * z),
            kept=((gates + 1 if fused or not gated else gates + 2) * width) * T * z,
            left=width * T * z,
            transient=2 * width * T * z,
        ),
        _linear(rates, f"{name} 2", role, size, T, C, width, module),
    ]


def _dense(layout: Layout, rates: Rates) -> list[Operation]:
    config, size = layout.config, sizes(layout.config)
    model, width = config.model, config.model.ffn_hidden_size / config.parallel.tensor
    gated = model.activation == "swiglu"
    return [
        *_mlp(rates, "mlp", "experts", size, model.hidden_size, width, gated, "mlp"),
        _split(layout, rates, "experts"),
    ]


def _experts(layout: Layout, rates: Rates) -> list[Operation]:
    config, size, assumed = layout.config, sizes(layout.config), rates.assumptions
    model, moe, parallel = config.model, config.moe, config.parallel
    C, z, gated = model.hidden_size, size.itemsize, model.activation == "swiglu"
    # Every rank of the tensor-parallel group sends its own share of the tokens.
    mine = size.tokens / parallel.tensor
    routed = mine * moe.top_k
    rows = routed * parallel.expert_tensor * assumed.imbalance
    width, local = moe.ffn_hidden_size / parallel.expert_tensor, moe.experts // parallel.expert
    gates = 2 if gated else 1
    moved = (3, 5) if assumed.fused else (10, 16)
    copies = 1 if assumed.fused or local == 1 else 2  # sorted by rank, then by expert
    permute = 2 * copies * routed * C * z
    if moe.dispatcher == "alltoall":
        exchange = rates.all_to_all(routed * assumed.imbalance * C * z, layout.expert_group, moe.top_k)
        if parallel.expert_tensor > 1:
            exchange += rates.ring(rows * C * z, layout.tensor_group)
    else:
        group = layout.expert_group
        exchange = rates.ring(mine * C * z * group.size, group)
    operations = [
        Operation(
            "router",
            "attention",
            forward=rates.memory(mine * (C * (z + 8) + 16 * moe.experts)),
            dgrad=rates.memory(mine * (C * (z + 8) + 16 * moe.experts)),
            wgrad=rates.memory(mine * C * 4),
            kept=mine * moe.experts * 13,
        ),
        Operation("permute", "attention", forward=rates.memory(permute), dgrad=rates.memory(permute)),
        Operation(
            "dispatch",
            "dispatch",
            "all-to-all",
            forward=exchange,
            dgrad=exchange,
            transient=2 * routed * C * z * assumed.imbalance,
        ),
        Operation("received", "experts", kept=rows * C * z, left=rows * C * z),
        _linear(rates, "experts 1", "experts", size, rows, gates * width, C, groups=local),
        Operation(
            "experts activation",
            "experts",
            forward=rates.memory(moved[0] * width * rows * z),
            dgrad=rates.memory(moved[1] * width * rows * z),
            kept=(gates + (2 if assumed.fused else 3)) * width * rows * z,
            left=width * rows * z,
            transient=(2 * C * z + 4 * width) * rows,
        ),
        _linear(rates, "experts 2", "experts", size, rows, C, width, groups=local),
        Operation(
            "combine",
            "combine",
            "all-to-all",
            forward=exchange,
            dgrad=exchange,
            transient=2 * routed * C * z * assumed.imbalance,
        ),
        Operation("unpermute", "experts", forward=rates.memory(permute), dgrad=rates.memory(permute)),
    ]
    if moe.shared_experts:
        shared = moe.shared_experts * moe.ffn_hidden_size / parallel.tensor
        operations += _mlp(rates, "shared", "experts", size, C, shared, gated, "shared_experts")
        operations.append(_split(layout, rates, "experts"))
    return operations


def ends(layout: Layout, rates: Rates, first: bool, last: bool) -> list[Operation]:
    """Embedding and head, where a stage has them. Logits are kept in fp32 from the loss's forward to its backward."""
    config, size = layout.config, sizes(layout.config)
    C, T, z, t = config.model.hidden_size, size.tokens, size.itemsize, config.parallel.tensor
    operations = []
    if first:
        table = T * C
        operations.append(
            Operation(
                "embedding",
                "attention",
                forward=rates.memory(2 * table * z),
                wgrad=rates.memory(table * (z + 8)),
            )
        )
    if last:
        rows = padded_vocabulary(config) / t
        logits = T * rows
        wide = max(4, z)
        operations += [
            Operation(
                "final norm",
                "experts",
                forward=rates.memory(2 * T * C * z),
                dgrad=rates.memory(3 * T * C * z),
                kept=2 * T * C * z,
            ),
            _linear(rates, "head", "experts", size, T, rows, C),
            Operation(
                "loss",
                "experts",
                forward=rates.memory(logits * (z + 5 * wide)),
                dgrad=rates.memory(logits * (2 * wide + z)),
                kept=logits * wide,
                transient=logits * (wide + z),
            ),
        ]
    return operations
