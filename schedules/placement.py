"""Where stages live: the path that a micro-batch takes through the ranks.

The model is cut into S stages, 0 .. S-1. A path lists the rank of each of them in order. Most placements have
one path. DualPipe has two: micro-batches of path 0 enter at rank 0, those of path 1 at rank P-1, and each
path has its own copy of every stage. A *stage id* names one copy: ``path * S + model stage``. So ids 0 .. S-1
are path 0, ids S .. 2S-1 are path 1; id S+s holds the same parameters as id s, and there is no edge from id
S-1 to id S. Micro-batches are shared out in contiguous halves: path 0 carries 0 .. M/2-1, path 1 carries M/2
.. M-1. Either the stage id or the micro-batch alone therefore tells the direction, and one rank never holds
one id twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Placement:
    """``paths[p][s]`` is the rank of path p's copy of model stage s; all paths have the same length S."""

    ranks: int
    paths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks={self.ranks}: a pipeline needs at least 1")
        if not self.paths or not self.paths[0]:
            raise ValueError("a placement needs at least one path with at least one stage")
        for path in self.paths:
            if len(path) != len(self.paths[0]):
                raise ValueError(
                    f"paths of {len(self.paths[0])} and {len(path)} stages: all need the same number"
                )
            for stage, rank in enumerate(path):
                if not 0 <= rank < self.ranks:
                    raise ValueError(f"stage {stage} on rank {rank}: ranks are 0 .. {self.ranks - 1}")

    @cached_property
    def model_stages(self) -> int:
        """S, the number of pieces that the model is cut into."""
        return len(self.paths[0])

    @property
    def stages(self) -> int:
        """The number of stage ids: S times the number of paths."""
        return self.model_stages * len(self.paths)

    @cached_property
    def rank_of(self) -> tuple[int, ...]:
        """The rank of every stage id."""
        return tuple(rank for path in self.paths for rank in path)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stage ids on ``rank``, ascending."""
        return tuple(stage for stage, owner in enumerate(self.rank_of) if owner == rank)

    def path_of(self, stage: int) -> int:
        return stage // self.model_stages

    def model_stage(self, stage: int) -> int:
        """Which of the model's S stages the stage id is a copy of."""
        return stage % self.model_stages

    def copies(self, stage: int) -> tuple[int, ...]:
        """All stage ids with the same parameters as ``stage``, itself included: their gradients are
        summed."""
        return tuple(range(stage % self.model_stages, self.stages, self.model_stages))

    def previous(self, stage: int) -> int | None:
        """The stage id whose F feeds this one's F; None for the first of a path, which reads data."""
        return None if stage % self.model_stages == 0 else stage - 1

    def next(self, stage: int) -> int | None:
        """The stage id that this one's F feeds; None for the last of a path, which computes the loss."""
        return None if (stage + 1) % self.model_stages == 0 else stage + 1

    def microbatches_of(self, stage: int, microbatches: int) -> range:
        """The micro-batches, out of ``microbatches`` in all, that pass through the stage id."""
        path, paths = self.path_of(stage), len(self.paths)
        return range(path * microbatches // paths, (path + 1) * microbatches // paths)


def one_per_rank(ranks: int) -> Placement:
    """Stage r on rank r: GPipe, 1F1B, ZB-H1."""
    return Placement(ranks, (tuple(range(ranks)),))


def round_robin(ranks: int, chunks: int) -> Placement:
    """Stage s on rank s mod P, ``chunks`` stages on every rank: interleaved 1F1B."""
    if chunks < 1:
        raise ValueError(f"chunks={chunks}: every rank needs at least 1 stage")
    return Placement(ranks, (tuple(range(ranks)) * chunks,))


def v_shape(ranks: int) -> Placement:
    """Stages r and 2P-1-r on rank r: ZB-V, DualPipeV."""
    down = tuple(range(ranks))
    return Placement(ranks, (down + down[::-1],))


def bidirectional(ranks: int) -> Placement:
    """Stage ids r and 2P-1-r on rank r, the second being the mirror copy of model stage P-1-r: DualPipe."""
    down = tuple(range(ranks))
    return Placement(ranks, (down, down[::-1]))
