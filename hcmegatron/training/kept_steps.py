"""Bad steps, kept in the run directory as anomalies/step-00000123.json and .npz: `hcmegatron replay` runs them again.

The .npz holds the whole global batch, so that neither the text nor the run's layout is needed to see it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import dump_config
from hcmegatron.config.types import flatten
from hcmegatron.training import manifest
from hcmegatron.training.observer import Step

if TYPE_CHECKING:
    from hcmegatron.training.resume import Start
    from hcmegatron.training.setup import TrainingRun

FOLDER = "anomalies"


def keep_step(run: TrainingRun, step: Step, start: Start | None = None) -> list[str]:
    """Keep a bad step's batch and what it was; on rank 0. A failure is said and costs nothing else.

    Args:
        start: the checkpoint that the run goes back to; None: the last one before the step.

    Returns:
        What the user should know, one line each.
    """
    if run.ranks.rank or not run.config.health.keep_bad_steps:
        return []
    folder = run.directory / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        path = _free(folder / manifest.name(step.number))
        batches = run.stepper.batches
        samples = batches.samples(step.result.samples.start)
        rows = np.stack([batches.rows[batches.window(sample)] for sample in samples])
        np.savez_compressed(path.with_suffix(".npz"), samples=np.array(samples), tokens=rows)
        path.with_suffix(".json").write_text(json.dumps(_described(run, step, start), indent=1) + "\n")
        _remove_older(folder, run.config.health.keep_bad_steps)
    except OSError as error:
        return [f"warning: the bad step's batch could not be kept in {folder}: {error.strerror}"]
    return [f"its batch is kept: hcmegatron replay {path}"]


def read(path: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """What a kept step was, its samples' numbers [B], and their tokens [B, S + 1].

    Raises:
        ConfigError: there is none of this name, or it is not what was written.
    """
    path = path.with_suffix("") if path.suffix in (".json", ".npz") else path
    try:
        described = json.loads(path.with_suffix(".json").read_bytes())
        with np.load(path.with_suffix(".npz")) as arrays:
            samples, tokens = arrays["samples"], arrays["tokens"]
        if not {"step", "bad", "loss", "grad_norm", "checkpoint", "after_step", "config"} <= described.keys():
            raise ValueError("settings are missing")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename}: there is no such file; name a kept step, like RUN/{FOLDER}/{manifest.name(12)}"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{path}: is no kept step, or not as it was written; name another") from None
    return described, samples, tokens


def _described(run: TrainingRun, step: Step, start: Start | None) -> dict[str, Any]:
    """What a step was. JSON has no NaN: such numbers are words."""
    config, result, saved = run.config, step.result, run.checkpoints.saved
    before, after = None, 0  # the weights that the configuration initialises
    if start is not None:
        before, after = str(start.path), start.position.step
    elif saved is not None:
        before, after = str(run.checkpoints.folder / manifest.name(saved.step)), saved.step
    elif run.start is not None:
        before, after = str(run.start.path), run.start.position.step
    numbers = {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": step.learning_rate}
    return {
        "step": step.number,
        "bad": result.bad,
        **{name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
        "checkpoint": before,
        "after_step": after,
        "seeds": {"training": config.training.seed, "data": config.data.seed},
        "ranks": run.ranks.world_size,
        "host": platform.node(),
        "text": run.checkpoints.writer.text,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "config": flatten(config),
    }


def _free(path: Path) -> Path:
    """The path, or path-2 and so on where a rewind has brought the run to the same step before."""
    number, free = 1, path
    while free.with_suffix(".json").exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _remove_older(folder: Path, keep: int) -> None:
    """All but the newest `keep`, by when they were written."""
    kept = [path for path in folder.glob("step-*.json") if re.fullmatch(r"step-\d{8}(-\d+)?", path.stem)]
    for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)[:-keep]:
        path.with_suffix(".npz").unlink(missing_ok=True)
        path.unlink()
