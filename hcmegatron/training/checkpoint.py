"""Checkpoints through torch.distributed.checkpoint: complete and verified ones only, and the newest few.

Saving stops training for a copy of the state, and goes on beside it (snapshot.py, checkpoint_writer.py). Nothing is
taken from a checkpoint before all of it was compared with its checksums.
"""

from __future__ import annotations

import importlib.metadata
import time
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import nn

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Config, resumes
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.kernels.select import select_kernels
from hcmegatron.model.specs import backend
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.platform import adam
from hcmegatron.platform.collective_failure import gathered, on_first_rank
from hcmegatron.platform.distributed import device, timeout
from hcmegatron.training import manifest, resume, run_directory, shard_files
from hcmegatron.training.as_residual import weights_of_residual
from hcmegatron.training.checkpoint_state import to_load, updating, weights_to_load
from hcmegatron.training.checkpoint_writer import CheckpointWriter
from hcmegatron.training.manifest import Damaged, Manifest, Progress
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.on_every_rank import NotDone, everywhere, unreadable
from hcmegatron.training.resume import Start
from hcmegatron.training.run_directory import locked
from hcmegatron.training.snapshot import at_once, in_background
from megatron.core.optimizer.optimizer import ChainedOptimizer

# Times parallel.timeout_s that ranks wait for the one whose disk is slowest: an hour by default. One that has died
# breaks its connection at once, and training's own groups see one that has stopped.
SAVING_TAKES = 6


def depends_on(config: Config) -> dict[str, Any]:
    """What a run's numbers depend on beside configuration and text, by name."""
    found = run_directory.versions()
    packages = ("triton", "transformer-engine") if torch.cuda.is_available() else ()
    return {
        "ranks": dist.get_world_size(),
        "CPU threads": torch.get_num_threads(),
        **{name: found[name] for name in ("hcmegatron", "python", "torch", "megatron-core", "device")},
        "numpy": numpy.__version__,  # draws the data's order
        "tokenizer": build_tokenizer(config.data.tokenizer).fingerprint,
        **{name: _installed(name) for name in packages},
        # what the settings of these names have come to on this machine
        "kernels": None if "kernels" in ineffective(config) else _kernels(config),
        "implementation": type(backend(config)).__name__,
    }


def find(
    config: Config,
    directory: Path,
    text: str,
    claimed: bool = False,
    environment: dict[str, Any] | None = None,
) -> Start | None:
    """The verified checkpoint that this run starts from, the same on every rank; None to begin anew. Collective.

    With checkpoint.resume, newer ones that are damaged are set aside by name, once a whole one is found.

    Args:
        claimed: this job holds the run directory's lock already.
        environment: what `depends_on` has said of this run; None: it is asked now, and reads the tokenizer's files.

    Raises:
        ConfigError: see resume.find.
    """
    environment, damaged = environment or depends_on(config), dict[Path, str]()
    while start := on_first_rank(lambda: resume.find_start(config, directory, text, environment, damaged)):
        try:
            verify(start)
        except Damaged as error:
            if not resumes(config) or resume.begins_by_load(config, directory) or start.weights_only:
                raise  # there is no other to look for
            damaged.update({**start.damaged, start.path: error.what})
            continue
        return (
            on_first_rank(lambda start=start: _set_aside(start, directory, claimed))
            if start.damaged
            else start
        )
    return None


def verify(start: Start) -> None:
    """Compare every file of the checkpoint of a start with its checksums, as `verify_files`. Collective."""
    verify_files(start.path, start.manifest)


def verify_files(path: Path, written: Manifest) -> None:
    """Compare every file of a checkpoint with its checksums, each rank a share of the blocks. Collective.

    Raises:
        ConfigError: one is not as it was written; on every rank, whichever found it.
    """
    fault: ConfigError | None = None
    try:
        manifest.verify(path, written, slice(dist.get_rank(), None, dist.get_world_size()))
    except ConfigError as error:
        fault = error
    for found in gathered(fault):
        if found is not None:
            raise found


def load_weights(chunks: list[nn.Module], path: Path, of_residual: bool = False) -> None:
    """Fill the network's weights, where there is no optimizer. Collective.

    Args:
        of_residual: all but the connections', which stay as they are.

    Raises:
        NotDone: they cannot be read, or are not those of the checkpoint.
    """
    stored = everywhere(lambda: shard_files.shapes(path), unreadable)
    wanted = weights_to_load(chunks)
    if of_residual:
        wanted = weights_of_residual(wanted, chunks)
    everywhere(lambda: shard_files.read(wanted, path, stored), unreadable)


def _set_aside(start: Start, directory: Path, claimed: bool) -> Start:
    try:
        with nullcontext() if claimed else locked(directory):
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


@dataclass(frozen=True)
class Save:
    """A save that has begun. What it returns are lines for the user, once the checkpoint has its name."""

    at: Progress
    outcome: Future[list[str]]


class Checkpoints:
    """Saves and loads this run's checkpoints. Every method is collective: all ranks call it.

    With checkpoint.asynchronous, training is stopped for a copy of the state in host memory (snapshot.py); a thread of
    every rank writes it, and one save is under way at a time. The threads agree over a group of their own.

    Attributes:
        tidied: what a killed run had left half written and is removed now, in words.
        saved: what the last save is of that is complete; told: the last of which observers have heard.
        failed: why the last attempt to save failed; None where it did not.
    """

    def __init__(
        self, directory: Path, config: Config, text: str, chunks: list[nn.Module], optimizer: ChainedOptimizer
    ) -> None:
        self.folder = directory / "checkpoints"
        self.config, self.chunks, self.optimizer = config, chunks, optimizer
        patience = SAVING_TAKES * timeout(config.parallel)
        group = dist.new_group(backend="gloo", timeout=patience, group_desc="checkpoints")
        state = self.chunks, self.optimizer
        self.writer = CheckpointWriter(self.folder, config, text, depends_on(config), *state, group)
        self.saved: Progress | None = None
        self.told: Progress | None = None
        self.failed: str | None = None
        self._begun: Save | None = None
        self.tidied = manifest.tidy(self.folder) if dist.get_rank() == 0 else []

    def save(self, at: Progress, keep_older: bool = False) -> list[str]:
        """Begin to write the state, which is that of `at`, unless it is saved; the save before is waited for.

        Without checkpoint.asynchronous the checkpoint is complete, or has failed, when this returns.

        Args:
            keep_older: remove no older checkpoint, because the run may have lost its way since.

        Returns:
            What the user should know, one line each.
        """
        said = self._waited_for(at)
        if at == self.saved:
            return said
        gather_parameters(self.chunks)
        try:
            self.writer.agree()
        except NotDone as error:
            return said + self._not_saved(at, error)
        asynchronous = self.config.checkpoint.asynchronous
        # What fails here is heard of by all ranks in `write`: no rank waits for another while training is stopped.
        share = at_once(lambda: self.writer.share(copied=asynchronous))
        updates = max(map(adam.updates, updating(self.optimizer)), default=0)
        begin = in_background if asynchronous else at_once
        self._begun = Save(at, begin(lambda: self.writer.write(share, at, updates, keep_older)))
        return said if asynchronous else said + self.finish()

    def arrived(self) -> bool:
        """Whether a save is under way of which every rank has done its part: `finish` will not wait."""
        if self._begun is None:
            return False
        done = torch.tensor([int(self._begun.outcome.done())], device=device())
        dist.all_reduce(done, dist.ReduceOp.MIN)
        return bool(done.item())

    def finish(self) -> list[str]:
        """Wait for the save that is under way, if one is. A failure is said and leaves nothing behind.

        Returns:
            What the user should know, one line each.
        """
        if self._begun is None:
            return []
        begun, self._begun = self._begun, None
        try:
            said = begun.outcome.result()
        except NotDone as error:
            return self._not_saved(begun.at, error)
        self.saved, self.failed = begun.at, None
        return said

    def rescue(self) -> list[str]:
        """After an error on this rank: let the save that is under way come to its end. Not collective; raises nothing.

        Other ranks may have ended; then theirs fails at once. Where a machine is lost, parallel.timeout_s are waited.
        """
        if self._begun is None:
            return []
        begun, self._begun = self._begun, None
        wait([begun.outcome], self.config.parallel.timeout_s)
        whole = begun.outcome.done() and begun.outcome.exception() is None
        end = "is complete" if whole else "was not completed"
        return [f"the checkpoint after step {begun.at.step}, which was being written, {end}"]

    def load(self, start: Start) -> None:
        """Fill model and optimizer from a verified checkpoint; of a start with weights alone, all but the connections'.

        Raises:
            ConfigError: it cannot be read; on every rank, whichever found it.
        """
        try:
            # Before the first collective of `shard_files.read`: a rank that cannot see the files would leave the others
            # in it.
            stored = everywhere(lambda: shard_files.shapes(start.path), unreadable)
        except NotDone as error:
            raise ConfigError(
                f"checkpoint {start.path} cannot be read: {error}; every rank has to see it whole"
            ) from None
        try:
            wanted = to_load(self.chunks, self.optimizer)
            if start.weights_only:
                wanted = tuple(weights_of_residual(pieces, self.chunks) for pieces in wanted)
            for pieces in wanted:
                everywhere(lambda pieces=pieces: shard_files.read(pieces, start.path, stored), unreadable)
        except NotDone as error:
            raise manifest.corrupt(start.path, str(error)) from None
        if start.weights_only:
            return
        for optimizer in updating(self.optimizer):
            adam.set_updates(optimizer, start.manifest.updates)
        if self.folder in start.path.parents:
            self.saved = start.position

    def _waited_for(self, at: Progress) -> list[str]:
        """Finish the save before that of `at`."""
        begun, start = self._begun, time.perf_counter()
        late = begun is not None and not begun.outcome.done()
        said = self.finish()
        if late:
            said.append(
                f"saving after step {at.step} waited {time.perf_counter() - start:.1f} s for the checkpoint after step "
                f"{begun.at.step} to be written; a larger checkpoint.save_every leaves it more time"
            )
        return said

    def _not_saved(self, at: Progress, error: NotDone) -> list[str]:
        self.failed = f"the checkpoint after step {at.step} could not be saved: {error}"
        return [f"warning: {self.failed}; the next save, if there is one, tries again"]
