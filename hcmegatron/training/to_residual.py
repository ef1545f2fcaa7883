"""A checkpoint whose connections compute what plain residuals do, as a checkpoint of those: the way back of
as_residual.py. One process, without Megatron.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import unflatten
from hcmegatron.connections import accounting
from hcmegatron.connections.build import build_connection
from hcmegatron.connections.kinds.residual import RESIDUAL
from hcmegatron.platform.collective_failure import in_one_line
from hcmegatron.training import manifest
from hcmegatron.training.checkpoint_index import Reader
from hcmegatron.training.checksums import summed

WITHIN = 1e-6  # of a connection's parameter, from where it begins as the residual network
MOMENTS = "optimizer.state."


def contract(source: Path, run: Path) -> Path:
    """Write the residual checkpoint of `source` into the run directory `run`, and return where.

    Weights, buffers and what the optimizer remembers of them stay, bit for bit; the connections' are left out.

    Raises:
        ConfigError: `source` is no whole checkpoint, or one of residuals, or its connections have been trained; or
            `run` is there already.
    """
    saved = manifest.read(source)
    if saved.first_format:
        raise ConfigError(
            f"checkpoint {source} is of format 1, which does not say its configuration; name another"
        )
    manifest.verify(source, saved)
    config = unflatten(saved.config, f"checkpoint {source}")
    if config.connection.kind == RESIDUAL.name:
        raise ConfigError(f"checkpoint {source} is of {RESIDUAL.name} connections already; use it as it is")
    if run.exists():
        raise ConfigError(f"{run} is there already; name a directory that is to be made")
    tensors = _tensors(source)
    left_out = _untrained(config, tensors, source)
    kept = {key: tensor for key, tensor in tensors.items() if _weight(key) not in left_out}
    path = run / "checkpoints" / manifest.name(saved.step)
    partial = path.with_suffix(".partial")
    try:
        partial.mkdir(parents=True)
        with _one_process():
            dcp.save(kept, storage_writer=dcp.FileSystemWriter(partial, sync_files=True), no_dist=True)
        names = [file.name for file in partial.iterdir()]
        settings = {**saved.config, "connection.kind": RESIDUAL.name}
        dataclasses.replace(saved, config=settings, files=summed(partial, names)).write(partial)
        manifest.publish(partial, path)
    except BaseException as error:
        shutil.rmtree(run, ignore_errors=True)
        if not isinstance(error, OSError | CheckpointException):
            raise
        raise ConfigError(f"{run} cannot be written: {_reason(error)}; name another directory") from None
    return path


def _reason(error: OSError | CheckpointException) -> str:
    """What went wrong, in one line. torch wraps it, in what is no Exception."""
    cause: BaseException = error
    if isinstance(error, CheckpointException) and error.failures:
        cause, _ = next(iter(error.failures.values()))
    return (isinstance(cause, OSError) and cause.strerror) or in_one_line(cause)


def _tensors(source: Path) -> dict[str, Tensor]:
    stored = Reader(source).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if hasattr(entry, "size")
    }
    with _one_process():
        dcp.load(tensors, storage_reader=Reader(source), no_dist=True)
    return tensors


@contextmanager
def _one_process() -> Iterator[None]:
    """Without torch's warning that this is one process, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _weight(key: str) -> str:
    """The weight that a tensor is, or that it is a moment of."""
    return key.removeprefix(MOMENTS).partition(".")[2] if key.startswith(MOMENTS) else key


def _untrained(config: Any, tensors: dict[str, Tensor], source: Path) -> set[str]:
    """Keys of the connections' parameters, which are what the residual network needs.

    Raises:
        ConfigError: one is not.
    """
    kind, C = accounting.kind_of(config.connection), config.model.hidden_size
    if not kind.continues_residual:
        raise ConfigError(f"checkpoint {source}: connection.kind = {kind.name} is never the residual network")
    # the learned contraction is a multiple of equal streams, whatever its values
    found = {key for key in tensors if key.startswith("decoder.contract.")}
    for k in range(2 * config.model.layers):
        connection = build_connection(
            config.connection, C, k, norm_eps=config.model.norm_eps, kernels="torch"
        )
        values = kind.as_residual(config.connection, k) if kind.as_residual else {}
        sub_layer = f"decoder.layers.{k // 2}.{('attention', 'mlp')[k % 2]}_connection"
        for name, initial in connection.named_parameters():
            key = f"{sub_layer}.{name}"
            wanted = torch.tensor(values[name]) if name in values else initial.detach()
            apart = float((tensors[key] - wanted).abs().max())
            if not apart <= WITHIN:
                raise ConfigError(
                    f"checkpoint {source}: {key} is {apart:.2g} away from where it computes what a residual does "
                    f"(at most {WITHIN:g}), so its connections cannot be left out; contract one that has not been "
                    "trained"
                )
            found.add(key)
    return found
