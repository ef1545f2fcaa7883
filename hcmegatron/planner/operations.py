"""What a layer, an embedding and a head do on one rank for one micro-batch, with the recomputation asked for."""

from __future__ import annotations

from dataclasses import replace

from hcmegatron.config.ranges import KERNEL_STREAMS
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.planner.attention_operations import attention
from hcmegatron.planner.counts import padded_vocabulary
from hcmegatron.planner.layers import has_experts
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.mlp_operations import dense, experts
from hcmegatron.planner.operation import Operation, linear, sizes
from hcmegatron.planner.rates import Rates
from schedules.node_costs import Role


def fused(config: Config) -> bool:
    """Whether the connections have Triton kernels on a GPU (hcmegatron.kernels.select)."""
    has_kernels = accounting.kind_of(config.connection).kernels
    return has_kernels and config.kernels in ("auto", "triton") and config.connection.n <= KERNEL_STREAMS


def folds(config: Config) -> bool:
    """Whether a sub-layer's write also makes the next one's projection."""
    return accounting.kind_of(config.connection).folds and fused(config)


def connection_traffic(config: Config) -> tuple[float, float]:
    """Elements of C that one token moves through one connection, (forward, backward), with w streams.

    mHC: read 2w+1 (x is read twice; w+1 where the projection is folded into the write before), write 2w+1; backward
    3w+2 and 4w+2. At w = 4: 18 (14 folded) and 32. HC and FC with dynamic weights are taken alike, static ones read
    the streams once. Where the carry is the identity, the write's backward has no streams to read or to write: w+2.
    Without Triton, plain torch moves about twice as much (assumed). A residual adds: 3 and 3.
    """
    kind, w = accounting.kind_of(config.connection), accounting.streams(config.connection)
    passes = kind.passes
    if not passes:
        return 3, 3
    forward = ((passes - folds(config)) * w + 1) + (2 * w + 1)
    carried = 2 * w if kind.carry == "matrix" else 0
    backward = (carried + w + 2) + (passes * (w + 1) + 2 * w)
    unfused = 1 if fused(config) else 2
    return unfused * forward, unfused * backward


def layer_operations(layout: Layout, rates: Rates, layer: int) -> list[Operation]:
    """Of one layer, with the recomputation that the configuration asks for."""
    config = layout.config
    first = attention(layout, rates)
    rest = experts(layout, rates) if has_experts(config, layer) else dense(layout, rates)
    # What surrounds a mixture of experts runs with the nodes before the dispatch and after the combine; here all of it
    # is taken as before, on the compute lane.
    second: Role = "attention" if has_experts(config, layer) else "experts"
    operations = [*_around(config, rates, "attention"), *first, *_around(config, rates, second), *rest]
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
    """Connection and norm of one sub-layer; a read that is normed is the norm's output already."""
    size, C, conn = sizes(config), config.model.hidden_size, config.connection
    element = C * size.itemsize * size.local
    forward, backward = connection_traffic(config)
    adds = not accounting.kind_of(conn).passes
    normed = element if not accounting.kind_of(conn).normalises else 0.0
    share = rates.assumptions.elementwise if adds else rates.assumptions.kernels
    # Products in fp32, half of which the backward makes again; beside them four tensors as wide as the streams at most:
    # normed streams, logits and what is their gradient.
    columns, width = accounting.kind_of(conn).products(conn, C), accounting.streams(conn) * C
    products = rates.matmul(size.local, columns, width, 4) if columns else 0.0
    wide = 4 * 4 * width * size.local if columns else 0.0
    return [
        Operation(
            "connection",
            role,
            "connections",
            "connection",
            forward=rates.memory(forward * element, share) + products,
            dgrad=rates.memory(backward * element, share) + 2.5 * products,
            kept=accounting.saved_bytes(conn, C, size.itemsize) * size.local + element,
            transient=2 * accounting.streams(conn) * element + wide,
        ),
        Operation(
            "norm",
            role,
            module="connection",
            forward=rates.memory(2 * normed),
            dgrad=rates.memory(3 * normed),
            kept=normed,
            left=element,
        ),
        # the write keeps the sub-layer's output; a sum needs it no more
        Operation("output", role, kept=0 if adds else element),
    ]


def embedding_and_head(layout: Layout, rates: Rates, first: bool, last: bool) -> list[Operation]:
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
        operations += [
            Operation(
                "final norm",
                "experts",
                forward=rates.memory(2 * T * C * z),
                dgrad=rates.memory(3 * T * C * z),
                kept=2 * T * C * z,
                left=T * C * z,
            ),
            linear(rates, "head", "experts", size, T, rows, C),
            _loss(rates, logits, z),
        ]
    return operations


def _loss(rates: Rates, logits: float, itemsize: int) -> Operation:
    """Cross entropy of so many logits, in fp32 or better: they are turned to it, and their gradient back."""
    wide = max(4, itemsize)
    if rates.assumptions.fused_loss:
        moved = rates.memory(2 * logits * itemsize)
        return Operation("loss", "experts", forward=moved, dgrad=moved, kept=logits * itemsize)
    return Operation(
        "loss",
        "experts",
        forward=rates.memory(logits * (itemsize + 5 * wide)),
        dgrad=rates.memory(logits * (2 * wide + itemsize)),
        kept=logits * wide,
        transient=logits * (wide + itemsize),
    )
