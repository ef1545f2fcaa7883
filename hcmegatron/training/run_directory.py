"""The directory of one run: claimed by one job at a time, never overwritten by accident."""

from __future__ import annotations

import fcntl
import json
import platform
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, TypeVar

import torch
import torch.distributed as dist

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump
from hcmegatron.config.schema import Config
from hcmegatron.platform.megatron import VERSION

T = TypeVar("T")


def on_first_rank(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; a ConfigError there is raised on every rank.

    Collective. Without it the other ranks would wait for one that has given up.
    """
    result: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            result[0] = work()
        except ConfigError as error:
            result[1] = str(error)
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise ConfigError(result[1])
    return result[0]


def choose(config: Config, name: str) -> Path:
    """run.dir, or runs/<name>-<date and time>."""
    return Path(config.run.dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")


class RunDirectory:
    """The files that reproduce the run, and a lock that this job holds until it ends. Collective.

    Raises:
        ConfigError: another job holds it, or it holds a run and checkpoint.resume is off.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        on_first_rank(lambda: self._claim(path, config))

    def _claim(self, path: Path, config: Config) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run.dir = {path} is a file; name a directory")
        if path.is_dir() and any(path.iterdir()) and not config.checkpoint.resume:
            raise ConfigError(
                f"run.dir = {path} is already in use; choose another, or continue it with checkpoint.resume=true"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO = (path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"run.dir = {path} cannot be written: {error.strerror}; choose another"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"run.dir = {path} is in use by a job that is still running; choose another"
            ) from None
        (path / "config.yaml").write_text(dump(config))
        (path / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")


def environment() -> dict[str, str]:
    """Versions and machine, for whoever reads the run later."""
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "megatron-core": VERSION,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "CPU",
        "command": " ".join(sys.argv),
    }
