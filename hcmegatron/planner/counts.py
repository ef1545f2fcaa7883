"""Parameters and FLOPs by class: of the whole network, of a stage, and of a rank as tensor and expert parallelism shard
them. Sums equal planner.parameters and planner.flops to the integer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import Parameters
from hcmegatron.planner.layers import (
    Matrix,
    attention,
    final_norm,
    has_experts,
    head_widths,
    mlp,
    padded_vocab,
    shared_out,
)
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.parameters import layer_norm_parameters, norm_parameters
from hcmegatron.planner.stages import ModelStage

Class = Literal[
    "embedding", "attention", "dense", "experts", "shared experts", "router", "norms", "connections", "head"
]
CLASSES: tuple[Class, ...] = (
    *("embedding", "attention", "dense", "experts", "shared experts"),
    *("router", "norms", "connections", "head"),
)
WHOLE = ("router", "norms", "connections")  # kept whole on every tensor-parallel rank
MUONS = (
    "attention",
    "dense",
    "experts",
    "shared experts",
)  # where optimizer.name is muon; connections in part


def padded_vocabulary(config: Config) -> int:
    """`padded_vocab` with the tokenizer's own number of tokens where the configuration has none."""
    tokens = config.model.vocab_size
    if tokens is None:
        from hcmegatron.data.tokenizer_registry import build_tokenizer

        tokens = build_tokenizer(config.data.tokenizer).vocab_size
    return padded_vocab(config.model, config.parallel.tensor, tokens)


def mlp_parameters(config: Config, width: int) -> int:
    """Of one MLP of `width` hidden channels, or of one expert."""
    return _size(mlp(config, "mlp", width))


def _size(matrices: list[Matrix]) -> int:
    return sum(matrix.size for matrix in matrices)


def whole_model(config: Config) -> ModelStage:
    """The network as one stage."""
    return ModelStage(range(config.model.layers), True, True)


def parameters(config: Config, stage: ModelStage, active: bool = False) -> Counter[Class]:
    """Parameters of a stage, unsharded. A tied head counts only in a stage without the embedding.

    Args:
        active: those that one token passes; the embedding, a look-up, is none of them, a tied head is.
    """
    model, moe, C = config.model, config.moe, config.model.hidden_size
    layers = len(stage.layers)
    mixtures = sum(has_experts(config, layer) for layer in stage.layers)
    expert = mlp_parameters(config, moe.ffn_hidden_size)
    count: Counter[Class] = Counter(
        {
            "attention": layers * _size(attention(config)),
            "norms": layers * layer_norm_parameters(config),
            "connections": layers * 2 * accounting.parameters(config.connection, C),
            "experts": mixtures * (moe.top_k if active else moe.experts) * expert,
            "shared experts": mixtures * moe.shared_experts * expert,
            "router": mixtures * C * moe.experts,
            "dense": (layers - mixtures) * mlp_parameters(config, model.ffn_hidden_size),
        }
    )
    vocabulary = C * padded_vocabulary(config)
    if stage.first and not active:
        count["embedding"] += vocabulary
    if stage.last:
        count["norms"] += norm_parameters(final_norm(config))
        count["connections"] += accounting.contract_parameters(config.connection, C)
        if active or not (stage.first and model.tie_embeddings):
            count["head"] += vocabulary
    return count


def rank_parameters(config: Config, stages: Iterable[ModelStage]) -> Counter[Class]:
    """Parameters that a rank holds of its chunks, sharded as planner.buffers has them."""
    parallel, total = config.parallel, Counter()
    for stage in stages:
        for name, count in parameters(config, stage).items():
            if name == "experts":
                total[name] += count // (parallel.expert * parallel.expert_tensor)
            elif name == "attention":  # of MLA, one matrix is whole
                total[name] += len(stage.layers) * sum(shared_out(config, m) for m in attention(config))
            else:
                total[name] += count if name in WHOLE else count // parallel.tensor
    return total


def held_parameters(layout: Layout, rank: int) -> Counter[Class]:
    """`rank_parameters` of a pipeline rank."""
    return layout.once(("parameters", rank), lambda: rank_parameters(layout.config, layout.held(rank)))


def held_matrices(layout: Layout, rank: int) -> Counter[Class]:
    """Of `held_parameters` those that Muon updates where optimizer.name is muon."""
    held, stages = held_parameters(layout, rank), layout.held(rank)
    return layout.once(("matrices", rank), lambda: matrices(layout.config, stages, held))


def matrices(config: Config, stages: Iterable[ModelStage], held: Mapping[Class, int]) -> Counter[Class]:
    """Of the parameters `held` of some stages those that Muon updates where optimizer.name is muon."""
    stages, C = tuple(stages), config.model.hidden_size
    found: Counter[Class] = Counter({name: held[name] for name in MUONS})
    sub_layers = 2 * sum(len(stage.layers) for stage in stages)
    found["connections"] = sub_layers * _matrices(accounting.table(config.connection, C))
    found["connections"] += sum(stage.last for stage in stages) * _matrices(
        accounting.head_table(config.connection, C)
    )
    return found


def _matrices(table: Parameters) -> int:
    """Numbers of a connection's parameters that are Muon's."""
    return sum(p.count for p in table.values() if p.optimizer_role == "matrix")


def forward_flops(config: Config, stage: ModelStage) -> Counter[Class]:
    """FLOPs per token of a stage's forward, a multiply-add counted as two, causal attention as half of s x s."""
    model, moe, C = config.model, config.moe, config.model.hidden_size
    active = parameters(config, stage, active=True)
    flops: Counter[Class] = Counter(
        {name: 2 * active[name] for name in CLASSES if name not in ("norms", "connections", "embedding")}
    )
    layers = len(stage.layers)
    core = config.data.sequence_length * model.heads * sum(head_widths(config))
    flops["attention"] += layers * core
    flops["connections"] = 2 * layers * accounting.flops(config.connection, C)
    assert moe.experts or not flops["experts"]
    return flops
