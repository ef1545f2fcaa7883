"""How many CPU cores are a rank's own: launchers bind ranks to cores, or leave a machine's ranks the same ones."""

from __future__ import annotations

import os

import psutil

from hcmegatron.platform.ranks import RankInfo

# Who started the ranks, by RankInfo.source: the nearest ancestor of a rank that has not got these itself.
_OF_A_RANK = {
    "torchrun": ("TORCHELASTIC_RUN_ID",),
    "Open MPI": ("OMPI_COMM_WORLD_RANK",),
    "PMI": ("PMI_RANK",),
    "SLURM": ("SLURM_PROCID",),
}


def own_cores(ranks: RankInfo) -> int:
    """Cores of this rank: those that it may run on, shared with the ranks that may run there too."""
    own = len(os.sched_getaffinity(0))
    return share(own, max(own, _of_the_launcher(ranks.source)), ranks.local_world_size)


def share(own: int, launchers: int, ranks: int) -> int:
    """Of a machine's `ranks`, one's part of its `own` cores. Pure.

    A launcher spreads its ranks evenly over its cores: where it binds none, all have all cores; where it binds each to
    as many as fit, no two have the same; where it binds to sockets, those of one socket have the same.

    Args:
        own: that the rank may run on.
        launchers: that the launcher, and so all of its ranks together, may run on.
    """
    same = -(-ranks * own // launchers)  # ranks that have these cores, rounded up
    return max(1, own // max(1, same))


def _of_the_launcher(source: str) -> int:
    """Cores that the launcher of this rank may run on; 0 where that cannot be told."""
    variables = _OF_A_RANK.get(source, ())
    if not variables:
        return 0
    for process in psutil.Process().parents():
        try:
            ranked = any(name in process.environ() for name in variables)
        except psutil.AccessDenied:  # another user's: not one of this rank's wrappers
            ranked = False
        except psutil.NoSuchProcess:
            return 0
        if not ranked:
            try:
                return len(os.sched_getaffinity(process.pid))
            except OSError:
                return 0
    return 0
