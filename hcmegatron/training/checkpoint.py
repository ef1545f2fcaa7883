"""Checkpoints through Megatron's dist_checkpointing: complete ones only, the newest few, and refused where they do
not fit.

A checkpoint is written under a temporary name and renamed when every rank is done, so a run killed while saving
leaves the one before. `manifest.json` holds what it is of and the size of every file.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.adam import prepare_for_loading
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.optimizer import distributed_optimizer
from hcmegatron.training.random_state import random_state, set_random_state
from hcmegatron.training.save_strategy import InProcessSave
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer.optimizer import MegatronOptimizer

MANIFEST = "manifest.json"
# The optimizer's state is stored in the shapes of the model's tensors, whatever the layout.
METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def architecture(config: Config) -> dict[str, Any]:
    """The settings that a checkpoint must share with the run that loads it, by dotted key."""
    sections = ("model", "mla", "moe", "connection")
    found = {
        f"{section}.{key}": value
        for section in sections
        for key, value in asdict(getattr(config, section)).items()
    }
    free = (
        "dropout",
        "aux_loss",
        "z_loss",
        "expert_bias_rate",
        "lr_multiplier",
        "init",
        "grouped",
        "dispatcher",
    )
    return {key: value for key, value in found.items() if not any(word in key for word in free)} | {
        "data.tokenizer": config.data.tokenizer,
        "training.dtype": config.training.dtype,
    }


def layout(config: Config, world_size: int) -> dict[str, Any]:
    """What bit-for-bit resumption depends on beside the architecture."""
    return {
        "world_size": world_size,
        **asdict(config.parallel),
        "distributed_optimizer": distributed_optimizer(config),
    }


def find(config: Config, directory: Path) -> Path | None:
    """The checkpoint that this configuration starts from: checkpoint.load, the newest of `directory` with
    checkpoint.resume, or none. No tensor is read.

    Raises:
        ConfigError: it is missing, partial, corrupt, or of another architecture (naming the first difference).
    """
    settings = config.checkpoint
    if settings.load is not None:
        path = Path(settings.load)
        if not path.is_dir():
            raise ConfigError(f"checkpoint.load = {path}: there is no such directory")
        path = path if (path / MANIFEST).exists() else newest(path) or path
    elif settings.resume:
        found = newest(directory)
        if found is None:
            return None
        path = found
    else:
        return None
    check(path, config)
    return path


def newest(directory: Path) -> Path | None:
    """The checkpoint of the highest step under `directory`/checkpoints (or in `directory` itself)."""
    for folder in (directory / "checkpoints", directory):
        found = sorted(folder.glob("step-????????"))
        if found:
            return found[-1]
    return None


def check(path: Path, config: Config) -> dict[str, Any]:
    """The checkpoint's manifest.

    Raises:
        ConfigError: see `find`.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"checkpoint {path} is partial or no checkpoint: it has no {MANIFEST}; name a complete one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ConfigError(
            f"checkpoint {path} is corrupt: {MANIFEST} is not JSON; delete it to use the one before"
        ) from None
    for name, size in manifest["files"].items():
        file = path / name
        there = file.stat().st_size if file.exists() else None
        if there != size:
            state = "is missing" if there is None else f"has {there} bytes"
            raise ConfigError(
                f"checkpoint {path} is corrupt: {name} {state}, {size} were written; delete it to use the one before"
            )
    sharded, shards = manifest["layout"]["distributed_optimizer"], distributed_optimizer(config)
    if sharded != shards:
        raise ConfigError(
            f"checkpoint {path} was saved with parallel.distributed_optimizer = {str(sharded).lower()}, "
            f"{str(shards).lower()} here, and Megatron stores the two optimizers differently; set it to match"
        )
    stored = manifest["architecture"]
    for key, value in architecture(config).items():
        if key in stored and stored[key] != value:
            raise ConfigError(
                f"checkpoint {path} is of another architecture: {key} = {stored[key]} there, {value} here; "
                "set it to match"
            )
    return manifest


class Checkpoints:
    """Saves and loads this run's checkpoints. Every method is collective: all ranks call it."""

    def __init__(
        self, directory: Path, config: Config, chunks: list[nn.Module], optimizer: MegatronOptimizer
    ) -> None:
        self.folder = directory / "checkpoints"
        self.config, self.chunks, self.optimizer = config, chunks, optimizer

    def save(self, step: int) -> Path:
        """Write the state after `step` steps, then remove all but the newest keep_last. Returns its path."""
        path = self.folder / f"step-{step:08d}"
        partial = path.with_suffix(".partial")
        first = dist.get_rank() == 0
        gather_parameters(self.chunks)
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(
            self._state(step), str(partial), sharded_strategy=InProcessSave(), content_metadata=METADATA
        )
        dist.barrier()
        if first:
            self._manifest(partial, step)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
            for old in sorted(self.folder.glob("step-????????"))[: -self.config.checkpoint.keep_last]:
                shutil.rmtree(old)
        dist.barrier()
        return path

    def load(self, path: Path) -> tuple[int, bool]:
        """Fill model, optimizer and, where the layout is the same, random states from a checked checkpoint.

        Returns:
            (steps done, whether the layout is the checkpoint's, so that the run continues bit for bit).

        Raises:
            ConfigError: a file of it is damaged; on every rank, whichever found it.
        """
        manifest = check(path, self.config)
        same = manifest["layout"] == json.loads(json.dumps(layout(self.config, dist.get_world_size())))
        prepare_for_loading(self.optimizer)
        wanted = self._state(0, loading=True, random=same)
        state, damage, cause = {}, None, None
        try:
            state = dist_checkpointing.load(wanted, str(path))
        except (Exception, CheckpointException) as error:
            # Whatever a damaged file makes the reader raise, the user needs to know which checkpoint it is. torch's
            # own exception is no Exception.
            said = str(error).strip().splitlines()
            damage, cause = f"{type(error).__name__}{': ' + said[0] if said else ''}", error
        # 0.19.2 reads without telling the other ranks, and not every rank reads every file.
        everywhere: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, damage)
        if found := [said for said in everywhere if said is not None]:
            raise ConfigError(
                f"checkpoint {path} is corrupt: {damage or found[0]}; delete it to use the one before"
            ) from cause
        for index, chunk in enumerate(self.chunks):
            unwrap(chunk).load_state_dict(state[f"model{index}"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if same:
            set_random_state(state["random"])
        return state["step"], same

    def _state(self, step: int, loading: bool = False, random: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = {
            f"model{index}": unwrap(chunk).sharded_state_dict(metadata=dict(METADATA))
            for index, chunk in enumerate(self.chunks)
        }
        state["optimizer"] = self.optimizer.sharded_state_dict(
            {key: dict(value) for key, value in state.items()}, is_loading=loading, metadata=dict(METADATA)
        )
        if random:
            rank, size = dist.get_rank(), dist.get_world_size()
            state["random"] = ShardedObject("random", random_state(), (size,), (rank,))
        return state | {"step": step}

    def _manifest(self, path: Path, step: int) -> None:
        manifest = {
            "step": step,
            "architecture": architecture(self.config),
            "layout": layout(self.config, dist.get_world_size()),
            "files": {
                str(file.relative_to(path)): file.stat().st_size
                for file in sorted(path.rglob("*"))
                if file.is_file()
            },
        }
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
