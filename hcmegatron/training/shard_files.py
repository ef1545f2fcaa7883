"""Boxes of whole tensors in files, through torch.distributed.checkpoint, which puts whole tensors together from them.

No process is started for it, and nothing but tensors is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.futures import Future
from torch.utils.serialization import config as serialization

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from hcmegatron.platform.collective_failure import in_one_line
from hcmegatron.training.checkpoint_index import Reader
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.checkpointable import (
    CheckpointableShardedTensor,
    LocalShardsContainer,
)

# What writing and reading raise: the second, which is torch's, is no Exception.
FAULTS = (Exception, CheckpointException)


@dataclass(frozen=True)
class TensorShard:
    """A box of a whole tensor.

    Attributes:
        data: the values, of the box's shape; a view of what the model or the optimizer holds.
        shape: of the whole tensor.
        offset: of the box in it.
        padded: the first axis is the vocabulary, which another layout may pad further.
    """

    key: str
    data: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    padded: bool = False


class ShardWriter:
    """Writes a state that keeps its shapes, save after save, into files of a directory.

    What several ranks offer is written by one of them; who writes what is agreed on once, before all else. The files of
    rank r are __r_*, and rank 0's also .metadata.

    Args:
        group: over which the ranks agree.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self._plan: SavePlan | None = None
        self._index: Metadata | None = None  # on rank 0

    @property
    def agreed(self) -> bool:
        """Whether it is known who writes what."""
        return self._plan is not None

    def agree(self, pieces: list[TensorShard]) -> None:
        """Agree on who writes what of every rank's pieces. Collective; raises one of FAULTS everywhere."""
        planner, writer = _planner(pieces), _Writer(Path())

        def assign(plans: list[SavePlan]) -> list[SavePlan]:
            plans, self._index = planner.create_global_plan(plans)
            return writer.prepare_global_plan(plans)

        # Not all_gather: the whole plan is as large as the index, and only rank 0 needs it.
        work = _DistWrapper(self.group, True, 0)
        self._plan = work.reduce_scatter("plan", planner.create_local_plan, assign)

    def share(self, pieces: list[TensorShard]) -> list[TensorShard]:
        """Those of its pieces that this rank writes."""
        mine = {(item.index.fqn, tuple(item.index.offset)) for item in self._plan.items}
        return [piece for piece in pieces if (piece.key, piece.offset) in mine]

    def write(self, share: list[TensorShard], directory: Path) -> list[WriteResult]:
        """This rank's share, onto the disk; where what is there, for `finish`. Raises FAULTS."""
        planner, writer = (
            _planner(share),
            _Writer(directory, ahead=any(piece.data.is_cuda for piece in share)),
        )
        return writer.write_data(planner.finish_plan(self._plan), planner).value()

    def finish(self, results: list[list[WriteResult]], directory: Path) -> None:
        """The index of what all ranks have written, onto the disk. Rank 0 alone; raises FAULTS."""
        _Writer(directory).finish(self._index, results)


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Of the whole tensors that are there, by key. This rank alone looks; raises FAULTS."""
    stored = Reader(directory).read_metadata().state_dict_metadata
    return {key: tuple(entry.size) for key, entry in stored.items() if hasattr(entry, "size")}


def read(pieces: list[TensorShard], directory: Path, stored: dict[str, tuple[int, ...]]) -> None:
    """Fill the pieces; one that is wanted twice, as tied weights are, is read once. Collective; raises FAULTS.

    Args:
        stored: the shapes of what is there.
    """
    wanted: dict[tuple[str, tuple[int, ...]], list[TensorShard]] = {}
    for piece in pieces:
        if (weights := f"optimizer.state.fp32_param.{piece.key}") in stored:
            # format 1 in bf16: what the optimizer updates was under a key of its own
            piece = replace(piece, key=weights)
        if piece.padded and piece.key in stored:
            piece = _as_padded(piece, stored[piece.key])
        if piece.data.numel():
            wanted.setdefault((piece.key, piece.offset), []).append(piece)
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    first = [same[0] for same in wanted.values()]
    dcp.load(_by_key(first), storage_reader=Reader(directory), planner=planner)
    for piece, *others in wanted.values():
        for other in others:
            other.data.copy_(piece.data)


def cause(error: BaseException) -> BaseException:
    """What went wrong on the first rank where anything did."""
    if isinstance(error, CheckpointException) and error.failures:
        error, _ = next(iter(error.failures.values()))
    return error


def reason(error: BaseException) -> str:
    """The cause in one line."""
    error = cause(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return in_one_line(error)


class _Writer(dcp.FileSystemWriter):
    """torch's, with the system's own word where a file cannot be written, such as that the disk is full.

    torch's serialisation answers that with an error about a position in its archive. It sums up every tensor for the
    archive, which is more than half of what writing costs a processor; the manifest has sums of its own.

    Args:
        ahead: copy tensors from the GPU while those before them are written.
    """

    def __init__(self, directory: Path, ahead: bool = False) -> None:
        super().__init__(directory, sync_files=True, per_thread_copy_ahead=10**7 * ahead)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            with serialization.patch("save.compute_crc32", False):  # in this thread alone
                return super().write_data(plan, planner)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


def _planner(pieces: list[TensorShard]) -> dcp.DefaultSavePlanner:
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(_by_key(pieces), is_coordinator=True)
    return planner


def _as_padded(piece: TensorShard, shape: tuple[int, ...]) -> TensorShard:
    """The rows of a piece that the checkpoint has. The others are padding, which no token reads or predicts."""
    rows = min(piece.data.shape[0], max(0, shape[0] - piece.offset[0]))
    return replace(piece, data=piece.data[:rows], shape=shape)


def _by_key(pieces: list[TensorShard]) -> dict[str, Tensor]:
    """Pieces as torch.distributed.checkpoint takes them, in Megatron's wrappers."""
    shards: dict[str, list[CheckpointableShardedTensor]] = {}
    for piece in pieces:
        size = tuple(piece.data.shape)
        shard = ShardedTensor(piece.key, piece.data, piece.data.dtype, size, piece.shape, piece.offset, None)
        shards.setdefault(piece.key, []).append(CheckpointableShardedTensor.from_sh_ten(shard))
    return {key: own[0] if len(own) == 1 else LocalShardsContainer(own) for key, own in shards.items()}
