"""Parameters of a model, from configuration alone, to the integer."""

from __future__ import annotations

from collections import Counter

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import OptimizerRole
from hcmegatron.planner.layers import NormShape, final_norm, matrices, norms


def total_parameters(config: Config, vocab_size: int) -> int:
    """Every parameter of the whole network, connections included. vocab_size: padded."""
    in_matrices = sum(matrix.size * matrix.count for matrix in matrices(config, vocab_size).values())
    return in_matrices + _norms(config) + connection_parameters(config)


def active_parameters(config: Config, vocab_size: int) -> int:
    """Those that one token passes, without the input embedding, as the mHC paper counts them."""
    active = sum(matrix.size * matrix.active for matrix in matrices(config, vocab_size).values())
    return active + _norms(config) + connection_parameters(config)


# What a matrix is of, by a part of its key; the first that fits.
_OF = {
    "embedding.": "embedding",
    "output_layer.": "head",
    ".self_attention.": "attention",
    ".mlp.router.": "routers",
    ".mlp.experts.": "experts",
    ".mlp.shared_experts.": "shared experts",
    ".mlp.": "MLP",
}


def parameters_by_role(config: Config, vocab_size: int) -> dict[OptimizerRole, Counter[str]]:
    """Parameters of the whole network by who updates them where optimizer.name is muon, and by what they are of.

    vocab_size: padded.
    """
    found: dict[OptimizerRole, Counter[str]] = {"matrix": Counter(), "adamw": Counter()}
    for key, matrix in matrices(config, vocab_size).items():
        what = next(name for part, name in _OF.items() if part in key)
        found[matrix.optimizer_role][what] += matrix.size * matrix.count
    conn, C = config.connection, config.model.hidden_size
    tables = (accounting.table(conn, C), 2 * config.model.layers), (accounting.head_table(conn, C), 1)
    for table, count in tables:
        for name, parameter in table.items():
            found[parameter.optimizer_role][f"connections' {name}"] += parameter.count * count
    if norms_count := _norms(config):
        found["adamw"]["norms"] = norms_count
    return found


def norm_parameters(norm: NormShape) -> int:
    """Of one norm."""
    return sum(norm.parameters.values())


def layer_norm_parameters(config: Config) -> int:
    """Of one layer's norms, those inside its attention included."""
    return sum(map(norm_parameters, norms(config)))


def connection_parameters(config: Config) -> int:
    """All connections (two a layer) and the contraction."""
    C = config.model.hidden_size
    of_one = accounting.parameters(config.connection, C)
    return 2 * config.model.layers * of_one + accounting.contract_parameters(config.connection, C)


def _norms(config: Config) -> int:
    return config.model.layers * layer_norm_parameters(config) + norm_parameters(final_norm(config))
