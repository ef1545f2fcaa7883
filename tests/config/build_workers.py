"""Configurations one after another, each built as a run is and let go before its first step."""

from __future__ import annotations

import os
from pathlib import Path

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training.observer_registry import build_observers
from hcmegatron.training.setup import assemble_run


def built(cases: list[tuple[str, Config]], folder: Path) -> int:
    """How many were built. What fails says which it was."""
    ranks = discover_ranks(os.environ)
    for number, (words, config) in enumerate(cases):
        try:
            corpus = find_corpus(config.data)
            with (
                megatron_groups(config) as groups,
                assemble_run(config, ranks, groups, corpus, folder / str(number)) as run,
                build_observers(run) as observers,
            ):
                assert len(observers.observers) >= 3 and len(run.chunks) > 0
        except Exception as error:
            raise AssertionError(f"accepted, but not built: {words}") from error
    return len(cases)
