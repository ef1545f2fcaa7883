"""Runs whose checkpoints are written slowly, while training goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, manifest, step
from hcmegatron.training.checkpoint_writer import CheckpointWriter
from hcmegatron.training.manifest import Progress
from hcmegatron.training.on_every_rank import everywhere
from hcmegatron.training.run import train
from hcmegatron.training.shard_files import ShardWriter
from hcmegatron.training.snapshot import in_background
from megatron.core.optimizer.optimizer import ChainedOptimizer
from tests.small_configs import put
from tests.training.workers import content


def slow(config: Config, stop_at: int, moved_at: int) -> None:
    """Train. The files of a checkpoint are written once the next step has ended, and that takes a moment.

    Args:
        stop_at: the run is told to stop in this 1-based step.
        moved_at: after this one, the optimizer's state is elsewhere in memory.
    """
    ended, stopped = threading.Event(), threading.Event()
    usual = ShardWriter.write

    def write(self: ShardWriter, *args: Any) -> Any:
        ended.clear()
        assert stopped.is_set() or ended.wait(60)
        time.sleep(0.2)
        return usual(self, *args)

    def meanwhile(number: int, stepper: step.Stepper) -> None:
        _at(number, stepper, stop_at, moved_at)
        if number == stop_at:  # no step comes after it
            stopped.set()
        ended.set()

    _afterwards(config, meanwhile)
    ShardWriter.write = write
    train(config, discover_ranks(os.environ))


def plain(config: Config, stop_at: int, moved_at: int) -> None:
    """The same run, whose checkpoints are taken from where everything is at that moment."""
    _afterwards(config, lambda number, stepper: _at(number, stepper, stop_at, moved_at))
    usual = CheckpointWriter.share

    def share(self: CheckpointWriter, copied: bool) -> Any:
        self._views, self._where = [], []
        return usual(self, copied)

    CheckpointWriter.share = share
    train(config, discover_ranks(os.environ))


def contents(folder: Path) -> dict[str, Any]:
    """Of a folder's checkpoints, which are all whole."""
    for path in folder.iterdir():
        manifest.verify(path, manifest.read(path))
    return {path.name: content(path) for path in folder.iterdir()}


def failing(config: Config, at: int) -> None:
    """Train two ranks. Rank 1 fails in step `at`, while the checkpoint before it is being written; rank 0 has no
    optimizer that counts its updates, as one without parameters."""
    usual_write, usual_step = ShardWriter.write, step.Stepper.step

    def write(self: ShardWriter, *args: Any) -> Any:
        time.sleep(1.0)
        return usual_write(self, *args)

    def failing_step(self: step.Stepper, seen: int) -> Any:
        if seen // config.training.global_batch + 1 == at and int(os.environ["RANK"]) == 1:
            raise RuntimeError("a mistake of the step")
        return usual_step(self, seen)

    ShardWriter.write, step.Stepper.step = write, failing_step
    if int(os.environ["RANK"]) == 0:
        checkpoint.updating = lambda optimizer: []
    train(config, discover_ranks(os.environ))


def with_a_slow_disk(folder: Path, timeout_s: int, seconds: float) -> list[str]:
    """Wait for a save that takes rank 1 so many `seconds`. Returns what was said."""
    config = put(Config(), parallel={"timeout_s": timeout_s})
    checkpoint.depends_on = lambda config: {}
    checkpoints = checkpoint.Checkpoints(folder, config, "text", [], ChainedOptimizer([]))
    rank, group = dist.get_rank(), checkpoints.writer.group
    work = partial(everywhere, lambda: time.sleep(seconds * rank) or ["saved"], group=group)
    checkpoints._begun = checkpoint.Save(Progress(1, 1), in_background(work))
    return checkpoints.finish()


def _afterwards(config: Config, do: Any) -> None:
    """After every step, do(its 1-based number, the stepper)."""
    usual = step.Stepper.step

    def stepped(self: step.Stepper, seen: int) -> Any:
        result = usual(self, seen)
        do(seen // config.training.global_batch + 1, self)
        return result

    step.Stepper.step = stepped


def _at(number: int, stepper: step.Stepper, stop_at: int, moved_at: int) -> None:
    if number == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
    if number == moved_at:
        for each in stepper.optimizer.chained_optimizers:
            for state in each.optimizer.state.values():
                state["exp_avg"] = state["exp_avg"].clone()
