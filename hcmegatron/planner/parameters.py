"""Parameters of a model, from configuration alone, to the integer."""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.planner.layers import NormShape, final_norm, matrices, norms


def total_parameters(config: Config, vocab_size: int) -> int:
    """Every parameter of the whole network, connections included. vocab_size: padded."""
    in_matrices = sum(matrix.size * matrix.count for matrix in matrices(config, vocab_size).values())
    return in_matrices + _norms(config) + connection_parameters(config)


def active_parameters(config: Config, vocab_size: int) -> int:
    """Those that one token passes, without the input embedding, as the mHC paper counts them."""
    active = sum(matrix.size * matrix.active for matrix in matrices(config, vocab_size).values())
    return active + _norms(config) + connection_parameters(config)


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
