"""The directory of a study: claimed by one command at a time, and by one study for ever.

study.yaml          which study it is, and its runs (record.py)
configs/NAME.yaml   the whole configuration of each: `hcmegatron train` takes it too
runs/NAME           its run directory, like any other
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from hcmegatron.config import Config, ConfigError, dump_config, read_config
from hcmegatron.config.checks import check_config
from hcmegatron.studies.learnt import difference, digest
from hcmegatron.studies.record import FILE, Entry, Record, read_record, replace_text, write_record
from hcmegatron.studies.state import checkpoint
from hcmegatron.studies.tasks import Task

LOCK = ".study.lock"
ENDING_S = 5.0  # for which a command that was killed may keep the lock


class StudyDirectory:
    """A study's directory, whose lock this process holds until it ends, with the study's runs written into it.

    Args:
        baseline: of its report.
        write: False: only look, whoever holds it.

    Attributes:
        says: what has changed since the last call, one line each.

    Raises:
        ConfigError: it is another study's or in use; a run in it is of another configuration; or it cannot be written.
    """

    def __init__(
        self, path: Path, study: str, tasks: Sequence[Task], baseline: str | None = None, write: bool = True
    ) -> None:
        self.path, self.says = path, list[str]()
        before = self._before(study)
        self.configs = {task.name: self._placed(task) for task in tasks}
        entries = tuple(_entry(task, self.configs[task.name]) for task in tasks)
        self.record = Record(path, study, entries, baseline)
        try:
            if write:
                path.mkdir(parents=True, exist_ok=True)
                self.lock = _locked(path)
                with _closed_on_error(self.lock):
                    self._refuse_others()
                    self._write()
            else:
                self._refuse_others()
        except OSError as error:
            raise ConfigError(
                f"run_dir = {path} cannot be written: {error.filename}: {error.strerror}; choose another"
            ) from None
        if before is not None:
            self.says = _changes(before.entries, entries)

    def _write(self) -> None:
        """The configurations, where they are not as they are to be, and the record."""
        for folder in ("configs", "runs"):
            (self.path / folder).mkdir(exist_ok=True)
        for name, config in self.configs.items():
            file, text = self.record.config_file(name), dump_config(config)
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                replace_text(file, text)
        write_record(self.record)

    def _before(self, study: str) -> Record | None:
        """What the directory was before; None where it is new."""
        try:
            used = [entry.name for entry in self.path.iterdir() if entry.name != LOCK]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"run_dir = {self.path} cannot be used: {error.strerror}; choose another"
            ) from None
        if FILE not in used:
            if not used or set(used) <= {
                "configs",
                "runs",
            }:  # of a call that was killed, or without its record
                return None
            raise ConfigError(
                f"run_dir = {self.path} is no study's directory: {min(used)} is there, and no {FILE}; choose another"
            )
        found = read_record(self.path)
        if found.study != study:
            raise ConfigError(
                f"run_dir = {self.path} is of the study {found.study}, and this is {study}; choose another, like "
                f"--study.run_dir=runs/studies/{study}"
            )
        return found

    def _placed(self, task: Task) -> Config:
        """A task's configuration with its directory, and the checkpoint that a branch begins with."""
        runs = self.path / "runs"
        settings = replace(task.config.checkpoint, load=None)
        if task.branch is not None:  # which begins with its run's weights, whatever that began with
            load = str(checkpoint(runs / task.run.name, task.branch.at_step))
            settings = replace(settings, load=load, init_from=None)
        placed = replace(
            task.config, run=replace(task.config.run, dir=str(runs / task.name)), checkpoint=settings
        )
        if task.branch is not None:  # a run was checked as it was worked out
            try:
                check_config(placed)
            except ConfigError as error:
                raise ConfigError(f"run {task.name}: {error}") from None
        return placed

    def _refuse_others(self) -> None:
        """ConfigError where a run has begun with what would come to another result."""
        for name, config in self.configs.items():
            run = self.path / "runs" / name
            if what := difference_of(run, config):
                raise ConfigError(
                    f"{run} is a run of another configuration: {what}; move it away to train it anew, or choose "
                    "another --study.run_dir for the changed study"
                )


def difference_of(run: Path, config: Config) -> str:
    """Where the configuration that a run directory was begun with differs in what is learnt, in words; "" where it does
    not, or nothing has begun there."""
    own = next(
        (run / name for name in ("config.resolved.yaml", "config.yaml") if (run / name).exists()), None
    )
    if own is None:
        return ""
    text = own.read_text(encoding="utf-8").partition("\n")[2]
    if text == dump_config(config):
        return ""
    try:
        there = read_config(own)[0]
    except ConfigError as error:
        return f"{own.name} there cannot be read: {error}"
    return difference(there, config)


def _entry(task: Task, config: Config) -> Entry:
    branch = task.branch
    return Entry(
        name=task.name,
        trunk=None if branch is None else task.run.name,
        branch=None if branch is None else branch.name,
        at_step=0 if branch is None else branch.at_step,
        steps=task.steps,
        tokens=task.tokens,
        axes=dict(task.run.axes),
        digest=digest(config),
        evaluation="test" if config.data.test else "validation",
    )


def _changes(before: Sequence[Entry], now: Sequence[Entry]) -> list[str]:
    """What a study has more and less than before, and what will be trained as it is now."""
    old, new = ({entry.name: entry.digest for entry in entries} for entries in (before, now))
    said = []
    for names, words in (
        ([name for name in new if name not in old], "are new"),
        ([name for name in old if name not in new], "are no longer in the study, and stay where they are"),
        ([name for name in new if old.get(name, new[name]) != new[name]], "have not begun, and were changed"),
    ):
        if names:
            said.append(f"{len(names)} runs {words}: {names[0]}" + (" and others" if len(names) > 1 else ""))
    return said


@contextmanager
def _closed_on_error(lock: IO[str]) -> Iterator[None]:
    """Give a lock back where what is done under it fails."""
    try:
        yield
    except BaseException:
        lock.close()
        raise


def _locked(path: Path) -> IO[str]:
    """The directory's lock. ConfigError where another command holds it, and keeps it for ENDING_S."""
    lock = (path / LOCK).open("w")
    deadline = time.monotonic() + ENDING_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise ConfigError(
                    f"run_dir = {path} is in use by another `hcmegatron study`; wait for it, or raise its --jobs"
                ) from None
            time.sleep(0.05)
