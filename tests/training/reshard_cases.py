"""Networks that are saved under one layout and read under another."""

from pathlib import Path

from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


def network(text, directory, parallel, dtype="fp32", **sections):
    """Two dense layers and two with experts: in two stages, the first has no expert parameters."""
    training = {"dtype": dtype, "global_batch": 4, "steps": 3}
    sections = {"training": training, "parallel": {"pipeline": 1, **parallel}, **sections}
    config = tiny(text, directory, **sections)
    config.model.layers, config.moe.first_dense, config.moe.ffn_hidden_size = 4, 2, 16
    config.model.vocab_multiple = 1  # so that the padding depends on the number of tensor-parallel ranks
    config.checkpoint.save_every, config.checkpoint.keep_last = 1, 3
    return config


def content(path: Path):
    return run_ranks(1, workers.content, path, **RUN)[0]


def differing(ours, theirs):
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
