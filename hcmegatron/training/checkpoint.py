"""Checkpoints through torch.distributed.checkpoint: complete and verified ones only, and the newest few.

A checkpoint is written under a temporary name; every rank then reads back what it wrote for the checksums of the
manifest (manifest.py), and only then it gets its name and older ones are removed. A run that is killed while it
saves, or whose disk is full, has the one before. Nothing is taken from a checkpoint before all of it was compared
with its checksums.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
import torch.distributed as dist
from torch import nn

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Config, resumes
from hcmegatron.config.types import flatten
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.kernels.select import select_kernels
from hcmegatron.model.specs import backend
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.platform import adam
from hcmegatron.platform.collective_failure import PeerFailed, gathered, in_one_line, on_first_rank
from hcmegatron.training import manifest, resume, run_directory, shard_files
from hcmegatron.training.checkpoint_state import to_load, to_save
from hcmegatron.training.checksums import File, summed
from hcmegatron.training.manifest import Damaged, Manifest, Progress
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.resume import Start
from hcmegatron.training.run_directory import locked
from hcmegatron.training.shard_files import FAULTS
from megatron.core.optimizer.optimizer import ChainedOptimizer

T = TypeVar("T")


# What a file system, or a machine without room, answers. Anything else that saving raises is a mistake of this program.
UNWRITABLE = (OSError, MemoryError, torch.OutOfMemoryError)
# What torch raises where a file is not what it was: of reading, all but what only a mistake of this program raises.
MISTAKES = (TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError)


class NotDone(Exception):
    """A rank could not write or read, for a reason in words."""


def depends_on(config: Config) -> dict[str, Any]:
    """What a run's numbers depend on beside configuration and text, by name."""
    found = run_directory.versions()
    packages = ("triton", "transformer-engine") if torch.cuda.is_available() else ()
    return {
        "ranks": dist.get_world_size(),
        "CPU threads": torch.get_num_threads(),
        **{name: found[name] for name in ("python", "torch", "megatron-core", "device")},
        "numpy": numpy.__version__,  # draws the data's order
        "tokenizer": build_tokenizer(config.data.tokenizer).fingerprint,
        **{name: _installed(name) for name in packages},
        # what the settings of these names have come to on this machine
        "kernels": None if "kernels" in ineffective(config) else _kernels(config),
        "implementation": type(backend(config)).__name__,
    }


def find(config: Config, directory: Path, text: str) -> Start | None:
    """The verified checkpoint that this run starts from, the same on every rank; None to begin anew. Collective.

    With checkpoint.resume, newer ones that are damaged are set aside by name, once a whole one is found.

    Raises:
        ConfigError: see resume.find.
    """
    environment, damaged = depends_on(config), dict[Path, str]()
    while start := on_first_rank(lambda: resume.find_start(config, directory, text, environment, damaged)):
        try:
            verify(start)
        except Damaged as error:
            if not resumes(config):
                raise
            damaged.update({**start.damaged, start.path: error.what})
            continue
        return on_first_rank(lambda start=start: _set_aside(start, directory)) if start.damaged else start
    return None


def verify(start: Start) -> None:
    """Compare every file of a checkpoint with its checksums, each rank a share of the blocks. Collective.

    Raises:
        ConfigError: one is not as it was written; on every rank, whichever found it.
    """
    fault: ConfigError | None = None
    try:
        manifest.verify(start.path, start.manifest, slice(dist.get_rank(), None, dist.get_world_size()))
    except ConfigError as error:
        fault = error
    for found in gathered(fault):
        if found is not None:
            raise found


def _set_aside(start: Start, directory: Path) -> Start:
    try:
        with locked(directory):
            return resume.set_aside(start)
    except OSError as error:
        raise ConfigError(f"run.dir = {directory} cannot be written: {error.strerror}") from None


def _kernels(config: Config) -> str:
    return select_kernels(config.kernels, n=config.connection.n, dtype=DTYPES[config.training.dtype]).name


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Checkpoints:
    """Saves and loads this run's checkpoints. Every method is collective: all ranks call it.

    Attributes:
        tidied: what a killed run had left half written and is removed now, in words.
        failed: why the last attempt to save failed; None where it did not.
    """

    def __init__(
        self, directory: Path, config: Config, text: str, chunks: list[nn.Module], optimizer: ChainedOptimizer
    ) -> None:
        self.folder = directory / "checkpoints"
        self.config, self.text, self.chunks, self.optimizer = config, text, chunks, optimizer
        self.saved: Progress | None = None
        self.failed: str | None = None
        self.tidied = manifest.tidy(self.folder) if dist.get_rank() == 0 else []

    def save(self, at: Progress, keep_older: bool = False) -> list[str]:
        """Write the state, which is that of `at`, unless it is saved. A failure is said and leaves nothing behind.

        Args:
            keep_older: remove no older checkpoint, because the run may have lost its way since.

        Returns:
            What the user should know, one line each.
        """
        if at == self.saved:
            return []
        path = self.folder / manifest.name(at.step)
        partial = path.with_suffix(".partial")
        try:
            self._write(partial, path, at)
        except NotDone as error:
            self.failed = f"the checkpoint after step {at.step} could not be saved: {error}"
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            return [f"warning: {self.failed}; the next save, if there is one, tries again"]
        self.saved, self.failed = at, None
        return [] if keep_older or dist.get_rank() else self._remove_older(path)

    def load(self, start: Start) -> None:
        """Fill model and optimizer from a verified checkpoint.

        Raises:
            ConfigError: it cannot be read; on every rank, whichever found it.
        """
        try:
            # Before the first collective of `shard_files.read`: a rank that cannot see the files would leave the others
            # in it.
            stored = _everywhere(lambda: shard_files.shapes(start.path), _unreadable)
        except NotDone as error:
            raise ConfigError(
                f"checkpoint {start.path} cannot be read: {error}; every rank has to see it whole"
            ) from None
        try:
            for pieces in to_load(self.chunks, self.optimizer):
                _everywhere(lambda pieces=pieces: shard_files.read(pieces, start.path, stored), _unreadable)
        except NotDone as error:
            raise manifest.corrupt(start.path, str(error)) from None
        for optimizer in self._inner():
            adam.set_updates(optimizer, start.manifest.updates)
        if self.folder in start.path.parents:
            self.saved = start.position

    def _write(self, partial: Path, path: Path, at: Progress) -> None:
        """Raises NotDone on every rank where it failed on one."""
        first, rank = dist.get_rank() == 0, dist.get_rank()
        gather_parameters(self.chunks)
        _everywhere(lambda: _emptied(partial) if first else None)
        pieces = _everywhere(lambda: list(to_save(self.chunks, self.optimizer)))
        _everywhere(lambda: shard_files.write(pieces, partial))

        def read_back() -> tuple[dict[str, File], int]:
            mine = [file.name for file in partial.glob(f"__{rank}_*")] + [".metadata"] * first
            return summed(partial, mine), max(map(adam.updates, self._inner()), default=0)

        everyones = gathered(_everywhere(read_back))
        files = {name: file for found, _ in everyones for name, file in found.items()}
        updates = max(count for _, count in everyones)
        complete = Manifest(*at, updates, flatten(self.config), self.text, depends_on(self.config), files)
        _everywhere(lambda: self._complete(partial, path, complete) if first else None)

    def _complete(self, partial: Path, path: Path, complete: Manifest) -> None:
        for (
            name
        ) in complete.files:  # of ranks on other machines, too: raises where those have disks of their own
            (partial / name).stat()
        complete.write(partial)
        manifest.publish(partial, path)

    def _inner(self) -> list[torch.optim.Optimizer]:
        """torch's optimizers in Megatron's, of which a rank without parameters of a kind has none."""
        return [each.optimizer for each in self.optimizer.chained_optimizers if not each.is_stub_optimizer]

    def _remove_older(self, than: Path) -> list[str]:
        """All but the newest keep_last of this one and those before it."""
        said = []
        for path in manifest.outdated(than, self.config.checkpoint.keep_last):
            try:
                shutil.rmtree(path)
            except OSError as error:
                said.append(f"the old checkpoint {path} could not be removed: {error.strerror}")
        return said


def _unwritable(error: BaseException) -> bool:
    return isinstance(shard_files.cause(error), UNWRITABLE)


def _unreadable(error: BaseException) -> bool:
    return not isinstance(shard_files.cause(error), MISTAKES)


def _everywhere(work: Callable[[], T], expected: Callable[[BaseException], bool] = _unwritable) -> T:
    """What `work` returned on this rank, once every rank has done it. Collective.

    Args:
        expected: whether a failure is one of the machine's, which its one line says.

    Raises:
        NotDone: on every rank, where such a failure came on one.
        PeerFailed: on the others, where any other failure came on one, which that one raises as it is.
    """
    failure, answer = None, None
    try:
        answer = work()
    except FAULTS as error:
        failure = error
    told = None if failure is None else (expected(failure), shard_files.reason(failure))
    failures = {rank: found for rank, found in enumerate(gathered(told)) if found is not None}
    if failure is not None and not told[0]:
        if isinstance(failure, Exception):
            raise failure
        # torch's own would pass by whoever says what ended a rank
        raise RuntimeError(in_one_line(failure)) from failure
    for rank, (is_expected, words) in failures.items():
        if not is_expected:
            raise PeerFailed(f"rank {rank} failed: {words}")
    if failures:
        raise NotDone(next(words for _, words in failures.values()))
    return answer


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
