"""A residual network's weights under other connections, which leave what it computes as it is.

With equal streams of which every read is one, every write adds y to each, and the carry changes nothing, a network of
any kind is the residual one: the final norm takes out what the sum over streams multiplies. How each kind gets there
stands in its descriptor.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.build import parameter_of
from hcmegatron.connections.connection import Connection
from hcmegatron.model.gpt import ConnectionGPT, unwrap
from hcmegatron.model.param_shards import param_shards
from hcmegatron.training.shard_files import TensorShard


@torch.no_grad()
def begin_as_residual(model: ConnectionGPT, config: Config) -> None:
    """Give connections the values with which a residual network's weights compute what they did."""
    values = accounting.kind_of(config.connection).as_residual
    if values is None:
        return  # it starts so
    for connection in model.connections():
        if not isinstance(connection, Connection):
            continue  # the learned contraction: of equal streams it is a multiple, which the final norm takes out
        for name, value in values(config.connection, connection.built.index).items():
            getattr(connection, name).copy_(torch.tensor(value))


def weights_of_residual(pieces: Iterable[TensorShard], chunks: Iterable[nn.Module]) -> list[TensorShard]:
    """Those of the pieces that a residual network has: neither connections nor what the optimizer remembers."""
    connections = {
        part.key for chunk in chunks for part in param_shards(unwrap(chunk)) if parameter_of(part.data)
    }
    return [
        piece
        for piece in pieces
        if piece.key not in connections and not piece.key.startswith("optimizer.state.")
    ]
