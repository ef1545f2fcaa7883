"""The directory of one run: claimed by one job at a time, and no file in it overwritten that a run did not write.

Importing this needs no torch, so that a directory that cannot be used is told of at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import IO

from hcmegatron import __version__
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump_config
from hcmegatron.config.schema import Config, resumes
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import on_first_rank

RESOLVED = ("config.yaml", "config.resolved.yaml")  # the second where the first is somebody's own
ENVIRONMENT = "environment.json"
LOCK = ".lock"
# A process that was killed while it waits for the disk keeps its files, and this lock, until the disk has answered.
ENDING_S = 5.0


def choose_directory(config: Config, name: str) -> Path:
    """run.dir, or runs/<name>-<date and time>."""
    return Path(config.run.dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")


def examine_directory(path: Path, config: Config) -> list[str]:
    """Whether a run may write to `path`; writes nothing. Returns warnings, one line each.

    Raises:
        ConfigError: it is a file, cannot be read, or holds a run and checkpoint.resume is never; or what this program
            would write there is somebody else's.
    """
    try:
        used = any(entry.name != LOCK for entry in path.iterdir())  # a job that could not begin leaves that
    except FileNotFoundError:
        return []
    except OSError as error:
        what = (
            "is a file; name a directory"
            if os.path.isfile(path)
            else f"cannot be used: {error.strerror}; choose another"
        )
        raise ConfigError(f"run.dir = {path} {what}") from None
    if used and not resumes(config):
        raise ConfigError(
            f"run.dir = {path} is already in use; choose another, or continue it with checkpoint.resume=auto"
        )
    if not _is_environment(path / ENVIRONMENT):
        raise ConfigError(f"run.dir = {path}: {ENVIRONMENT} there is not a run's; choose another directory")
    name = _name_of_resolved(path)
    if name == RESOLVED[0]:
        return []
    return [
        f"run.dir = {path}: {RESOLVED[0]} there was not written by a run, or was changed since, and is left alone; "
        f"this run's configuration is {name}"
    ]


class RunDirectory:
    """The files that reproduce the run, and a lock that this job holds until it ends. Collective.

    Raises:
        ConfigError: another job holds it, or see `examine_directory`.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        on_first_rank(lambda: self._claim(path, config))

    def _claim(self, path: Path, config: Config) -> None:
        examine_directory(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(path)
            text = dump_config(config)
            _replace(path / _name_of_resolved(path), _mark(text) + text)
            _replace(path / ENVIRONMENT, json.dumps(versions(), indent=1) + "\n")
        except OSError as error:
            raise ConfigError(
                f"run.dir = {path} cannot be written: {error.strerror}; choose another"
            ) from None


def locked(path: Path) -> IO:
    """The run directory's lock, held until the file that is returned is closed.

    Raises:
        ConfigError: another job holds it, and keeps it for ENDING_S.
        OSError: the directory cannot be written.
    """
    lock = (path / LOCK).open("w")
    deadline = time.monotonic() + ENDING_S
    try:
        while not _taken(lock):
            if time.monotonic() > deadline:
                lock.close()
                raise ConfigError(
                    f"run.dir = {path} is in use by a job that is still running; choose another"
                )
            time.sleep(0.05)
    except OSError as error:  # a shared file system without locks, such as Lustre without its flock option
        standard_streams.tell(
            f"hcmegatron: warning: run.dir = {path}: its file system has no locks ({error.strerror}); do not "
            "start another job there while this one runs"
        )
    return lock


def _taken(lock: IO) -> bool:
    """Whether this process has the lock now; OSError where the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name_of_resolved(path: Path) -> str:
    """The file of the resolved configuration: a name that is free, or that a run's own has."""
    for name in RESOLVED:
        if _is_resolved(path / name):
            return name
    raise ConfigError(
        f"run.dir = {path}: {' and '.join(RESOLVED)} there are not a run's; choose another directory"
    )


def _is_resolved(file: Path) -> bool:
    """Whether there is no such file, or a run wrote it and nobody has changed it since."""
    try:
        mark, _, text = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return mark + b"\n" == _mark(text.decode(errors="replace")).encode()


def _mark(text: str) -> str:
    """The first line of a configuration that a run writes, by which it knows it again."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"# {digest}: written by a run, and anew when it continues, unless this file was changed\n"


def _is_environment(file: Path) -> bool:
    """Whether there is no such file, or one with a run's versions."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"python", "torch", "megatron-core", "command"} <= found.keys()


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Versions and machine, for whoever reads the run later."""
    import torch

    from hcmegatron.platform.megatron import VERSION

    return {
        "hcmegatron": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "megatron-core": VERSION,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "CPU",
        "command": " ".join(sys.argv),
    }
