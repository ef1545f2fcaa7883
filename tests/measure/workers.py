"""What the ranks of test_measure.py run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.measure import bench
from hcmegatron.measure.messages import Hop
from hcmegatron.platform.ranks import discover_ranks
from schedules import generate
from schedules.runtime import SharedMemoryTransport
from tools.planned_measured import Row, compare


def row(config: Config, rounds: int, path: str) -> tuple[Row | None, list[str]]:
    """A configuration, measured and stepped; on rank 0. And what carried the messages that were measured."""
    ranks = discover_ranks(os.environ)
    with mock.patch.object(bench, "Hop", side_effect=Hop) as hops:
        assert compare(config, find_corpus(config.data), rounds, 1, Path(path), ranks) == 0
    carriers = [type(call.args[0]).__name__ for call in hops.call_args_list]
    return pickle.loads(Path(path).read_bytes()) if ranks.rank == 0 else None, carriers


def hop() -> tuple[bool, int, bool]:
    """Measures messages through shared memory: whether all were read in place, how many are still lent, and whether
    there was a time."""
    group = dist.group.WORLD
    where = generate("1f1b", 2, 2).placement
    transport = SharedMemoryTransport(group, where)
    with mock.patch.object(transport, "receive", side_effect=transport.receive) as receives:
        found = Hop(transport, where, group.rank(), torch.ones(64, 4)).round()
    in_place = all(call.args[1].is_meta for call in receives.call_args_list)
    return in_place, transport.lent, min(found["hop"]) > 0
