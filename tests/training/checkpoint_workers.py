"""What the ranks of a checkpoint's tests run beside whole runs."""

from __future__ import annotations

import ctypes
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import Batches
from hcmegatron.training import shard_files, step
from hcmegatron.training.shard_files import FAULTS, TensorShard
from tests.training.workers import run


class Command:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def malicious(folder: Path) -> dict[str, str]:
    """Read checkpoints whose index or whose tensors are calls of os.system; what was said."""
    said = {}
    for victim in ("nothing", ".metadata", "__0_0.distcp"):
        path = folder / victim.strip("._")
        path.mkdir()
        target = torch.zeros(4)
        writer = shard_files.ShardWriter()
        pieces = [TensorShard("a", torch.ones(4), (4,), (0,))]
        writer.agree(pieces)
        writer.finish([writer.write(writer.share(pieces), path)], path)
        call = Command(f"touch {path}/was_run")
        if victim == ".metadata":
            (path / victim).write_bytes(pickle.dumps(call))
        elif victim != "nothing":  # of the older kind, which may end before the index says
            torch.save(call, path / victim, _use_new_zipfile_serialization=False)
        try:
            shard_files.read([TensorShard("a", target, (4,), (0,))], path, shard_files.shapes(path))
            said[victim] = f"{target.tolist()}"
        except FAULTS as error:
            said[victim] = shard_files.reason(error)
        assert not (path / "was_run").exists(), victim
    return said


def resumed(config: Config) -> dict[int, str]:
    """As workers.run, without root's power to read what is forbidden."""
    capabilities = ctypes.CDLL(None)
    header, sets = (
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(),
    )  # linux/capability.h, version 3
    if capabilities.capget(header, sets) == 0:
        sets[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        capabilities.capset(header, sets)
    return run(config)


def continued(config: Config) -> dict[str, Any]:
    """Train; the samples that this rank trained on, and its hashes by saved step."""
    seen: list[int] = []
    usual_window, usual_rehearse = Batches.window, step.Stepper.rehearse

    def window(self: Batches, sample: int) -> Any:
        seen.append(sample)
        return usual_window(self, sample)

    def rehearse(self: step.Stepper) -> Any:
        said = usual_rehearse(self)
        seen.clear()
        self.batches._packed = (None, {})  # so that the first step reads for itself
        return said

    Batches.window, step.Stepper.rehearse = window, rehearse
    return {"hashes": run(config), "samples": seen}
