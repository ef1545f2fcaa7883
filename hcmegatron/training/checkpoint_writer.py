"""One checkpoint after another onto the disk: written, read back, completed, and only then named.

A checkpoint is written under a temporary name; every rank reads back what it wrote for the checksums of the manifest
(manifest.py), and only then it gets its name and older ones are removed. A run that is killed while it saves, or whose
disk is full, has the one before.
"""

from __future__ import annotations

import shutil
from collections import ChainMap
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.storage import WriteResult

from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.platform.collective_failure import gathered
from hcmegatron.training import manifest
from hcmegatron.training.checkpoint_state import storages, to_save
from hcmegatron.training.checksums import File, summed
from hcmegatron.training.manifest import Manifest, Progress
from hcmegatron.training.on_every_rank import NotDone, everywhere
from hcmegatron.training.shard_files import ShardWriter, TensorShard
from hcmegatron.training.snapshot import Snapshot
from megatron.core.optimizer.optimizer import ChainedOptimizer


class CheckpointWriter:
    """Writes the state of model and optimizer. Of its methods, `share` alone is not collective.

    Args:
        text: the fingerprint of the corpus.
        environment: what the numbers depend on beside configuration and text.
        group: over which the ranks agree, and nothing else that may happen at the same time.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        text: str,
        environment: dict[str, Any],
        chunks: list[nn.Module],
        optimizer: ChainedOptimizer,
        group: dist.ProcessGroup,
    ) -> None:
        self.folder, self.config, self.text, self.environment = folder, config, text, environment
        self.chunks, self.optimizer, self.group = chunks, optimizer, group
        self.files, self.snapshot = ShardWriter(group), Snapshot()
        self._views: list[TensorShard] = []  # of this rank's share, as long as all is where it was
        self._where: list[int] = []

    def agree(self) -> None:
        """Have the ranks agree who writes what, once. Raises NotDone on every rank where it failed on one."""
        if not self.files.agreed:
            pieces = everywhere(lambda: list(to_save(self.chunks, self.optimizer)), group=self.group)
            everywhere(lambda: self.files.agree(pieces), group=self.group)

    def share(self, copied: bool) -> list[TensorShard]:
        """What this rank writes: as it is, or a copy that training does not change."""
        where = storages(self.chunks, self.optimizer)
        if where != self._where:
            self._views = self.files.share(list(to_save(self.chunks, self.optimizer)))
            self._where = where
        return self.snapshot.take(self._views) if copied else self._views

    def write(
        self, share: Future[list[TensorShard]], at: Progress, updates: int, keep_older: bool
    ) -> list[str]:
        """Write, read back, complete, and remove older ones.

        Args:
            updates: that this rank's optimizers have counted; 0 where it has none.

        Raises:
            NotDone: on every rank, where it failed on one.
        """
        first, rank = dist.get_rank() == 0, dist.get_rank()
        path = self.folder / manifest.name(at.step)
        partial = path.with_suffix(".partial")

        def written() -> tuple[list[WriteResult], dict[str, File], int]:
            results = self.files.write(share.result(), partial)
            return results, summed(partial, [file.name for file in partial.glob(f"__{rank}_*")]), updates

        def complete() -> None:
            results, files, counts = zip(*everyones, strict=True)
            self.files.finish(list(results), partial)
            every = dict(ChainMap(*files)) | summed(partial, [".metadata"])
            whole = Manifest(
                at.step,
                at.samples,
                max(counts),
                flatten(self.config),
                self.text,
                self.environment,
                every,
                at.left_out,
                at.recent,
            )
            self._complete(partial, path, whole)

        try:
            everywhere(lambda: (share.result(), first and _emptied(partial)), group=self.group)
            everyones = gathered(everywhere(written, group=self.group), self.group)
            everywhere(lambda: complete() if first else None, group=self.group)
        except NotDone:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return [] if keep_older or not first else self._remove_older(path)

    def _complete(self, partial: Path, path: Path, complete: Manifest) -> None:
        for name in complete.files:
            # of ranks on other machines, too: raises where those have disks of their own
            (partial / name).stat()
        complete.write(partial)
        manifest.publish(partial, path)

    def _remove_older(self, than: Path) -> list[str]:
        """All but the newest keep_last of this one and those before it, and those of keep_at. No failure is one of
        the save's."""
        said = []
        try:
            outdated = manifest.outdated(
                than, self.config.checkpoint.keep_last, self.config.checkpoint.keep_at
            )
        except OSError as error:
            return [f"old checkpoints in {self.folder} could not be listed, and stay: {error.strerror}"]
        for path in outdated:
            try:
                manifest.remove(path)
            except OSError as error:
                said.append(f"the old checkpoint {path} could not be removed: {error.strerror}")
        return said


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
