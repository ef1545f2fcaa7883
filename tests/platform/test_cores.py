"""How many cores a rank has to itself, however its launcher binds it."""

import os

import pytest

from hcmegatron.config import load_config
from hcmegatron.platform.cores import own_cores, share
from hcmegatron.platform.distributed import threads
from hcmegatron.platform.ranks import RankInfo
from tests.ranks import ROOT


@pytest.mark.parametrize(
    "own, launchers, ranks, cores",
    [
        (8, 8, 4, 2),  # unbound
        (8, 64, 8, 8),  # each has cores of its own
        (32, 64, 8, 8),  # four in each of two sockets
        (1, 64, 2, 1),  # to a core each
        (2, 2, 4, 1),  # more ranks than cores
        (16, 64, 3, 16),  # not all of them are used
        (24, 64, 4, 12),  # bound to parts that do not divide the machine: rather too few threads
    ],
)
def test_a_ranks_share(own, launchers, ranks, cores):
    assert share(own, launchers, ranks) == cores


@pytest.mark.parametrize(
    "source, cores", [("Open MPI", 2), ("SLURM", 2), ("this command", 1), ("the environment", 1)]
)
def test_a_rank_that_is_bound_to_two_of_its_launchers_eight_cores(source, cores, monkeypatch):
    """Four of them are on the machine; where nobody says who has started them, they may share those two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8 if process else 2)))
    for name in ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    ranks = RankInfo(3, 4, 3, 4, "localhost", 1, source)
    assert own_cores(ranks) == cores
    assert threads(load_config(ROOT / "configs/quickstart.yaml"), ranks) == cores
