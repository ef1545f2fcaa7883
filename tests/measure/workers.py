"""What the ranks of test_measure.py run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform.ranks import discover_ranks
from tools.planned_measured import Row, compare


def row(config: Config, rounds: int, path: str) -> Row | None:
    """A configuration, measured and stepped; on rank 0."""
    ranks = discover_ranks(os.environ)
    assert compare(config, find_corpus(config.data), rounds, 1, Path(path), ranks) == 0
    return pickle.loads(Path(path).read_bytes()) if ranks.rank == 0 else None
