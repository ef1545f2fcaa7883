"""What the ranks of a data test run: whole trainings, and how often each rank reads tokens."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from hcmegatron.cli import main
from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training.run import train


def metrics(config: Config) -> list[dict]:
    """Train; the lines of metrics.jsonl, of rank 0."""
    assert train(config, discover_ranks(os.environ)) == 0
    if os.environ["RANK"] != "0":
        return []
    return [json.loads(line) for line in Path(config.run.dir, "metrics.jsonl").read_text().splitlines()]


def reads(config: Config) -> tuple[int, int]:
    """Train; how many micro-batches this rank has read of training and of held-out text."""
    counts = {Batches: 0, Validation: 0}

    def counted(kind: type) -> None:
        usual = kind.__call__

        def call(self: object, *place: int) -> dict:
            counts[kind] += 1
            return usual(self, *place)

        kind.__call__ = call

    counted(Batches)
    counted(Validation)
    assert train(config, discover_ranks(os.environ)) == 0
    return counts[Batches], counts[Validation]


def interrupted_in_a_fork(words: list[str]) -> list[int]:
    """`hcmegatron` with these words, while Ctrl-C comes in one of Python's hooks for forks; then once more. The exit
    statuses."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    def interrupt() -> None:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(before=interrupt)
    return [main(words), main(words)]
