"""Who updates which parameter where optimizer.name is muon, and Megatron's optimizers arranged so.

Matrices of attention, MLPs and experts, and those projections of connections that are matrices, are Muon's; embedding,
head, norms, routers, biases, static coefficients and gates AdamW's. The network's matrices say it in planner/layers.py,
the connections' parameters in their descriptors.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Config
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.param_shards import sharded_tensors
from hcmegatron.planner.layers import Matrix, matrices
from hcmegatron.planner.parameters import parameters_by_role
from hcmegatron.training.by_role import ByRole
from hcmegatron.training.checkpoint_state import held_boxes, updated_by
from hcmegatron.training.matrix_plan import Box, Place
from hcmegatron.training.muon import Muon
from hcmegatron.training.whole_matrices import Piece, Whole, WholeMatrices
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer


def matrices_to_muon(
    optimizer: ChainedOptimizer, chunks: list[nn.Module], config: Config, stage: dist.ProcessGroup
) -> None:
    """Give Muon the matrices of Megatron's optimizers. Collective over the ranks of a pipeline stage, `stage`.

    Megatron's own parts around it stay as they are: reduction, shards, master weights, norm, clipping, gathering.
    """
    for each in optimizer.chained_optimizers:
        if not each.is_stub_optimizer:
            _split(each, chunks, config, stage)


def _split(
    optimizer: MegatronOptimizer, chunks: list[nn.Module], config: Config, stage: dist.ProcessGroup
) -> None:
    pieces = _pieces(optimizer, chunks, matrices(config, 0))
    muons = {piece.weights for piece in pieces}
    adamw, groups = optimizer.optimizer, []
    for group in adamw.param_groups:
        groups.append({**group, "params": [p for p in group["params"] if p in muons]})
        group["params"] = [p for p in group["params"] if p not in muons]
    muon = Muon(groups, WholeMatrices(pieces, stage), config.muon, config.optimizer)
    optimizer.optimizer = ByRole(adamw, muon)


def _pieces(optimizer: MegatronOptimizer, chunks: list[nn.Module], table: dict[str, Matrix]) -> list[Piece]:
    """What one of Megatron's optimizers holds on this rank of matrices that are Muon's."""
    held, found = updated_by(optimizer), []
    for chunk in chunks:
        for tensor, part in sharded_tensors(unwrap(chunk)):
            updated, matrix = held.get(tensor), muons_matrix(tensor, part.key, table)
            if updated is None or matrix is None:
                continue
            place = Place(part.key, tuple(part.global_offset[: part.prepend_axis_num]))
            whole = Whole(matrix, tensor.dtype, updated.weights.dtype)
            found += [
                Piece(Box(place, offset, size), whole, updated.weights, first)
                for first, offset, size in held_boxes(part, tensor, updated)
            ]
    return found


def muons_matrix(tensor: Tensor, key: str, table: dict[str, Matrix]) -> Matrix | None:
    """Of a parameter that Muon updates; None of AdamW's.

    Args:
        key: in the checkpoint.
        table: planner.layers.matrices.
    """
    if (described := parameter_of(tensor)) is not None:
        out, into = described.shape if described.optimizer_role == "matrix" else (0, 0)
        return Matrix(key, out, into) if out else None
    matrix = table.get(key)
    return matrix if matrix is not None and matrix.optimizer_role == "matrix" else None


def described(config: Config, vocab_size: int) -> list[str]:
    """Who updates what, in words; nothing where all of it is AdamW's. vocab_size: padded."""
    if config.optimizer.name != "muon":
        return []
    names = {"matrix": "muon", "adamw": "adamw"}
    return [
        f"{names[role]} updates {sum(parts.values()):,} parameters: "
        + ", ".join(f"{what} {count:,}" for what, count in parts.items())
        for role, parts in parameters_by_role(config, vocab_size).items()
    ]
