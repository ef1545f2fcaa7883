"""A run's checkpoint, and the run's configuration for running the network forward in another layout. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hcmegatron.config import Config, ConfigError, check_config, check_world, read_config, smallest_world
from hcmegatron.config.schema import Checkpoint, Health, Recompute, Run
from hcmegatron.config.types import flatten, unflatten
from hcmegatron.training import manifest
from hcmegatron.training.manifest import Damaged, Manifest

# Settings that may be others than in training; the rest is the network, or has no effect here.
SETTINGS = (
    "parallel.pipeline",
    "parallel.virtual",
    "parallel.tensor",
    "parallel.sequence",
    "parallel.expert",
    "parallel.expert_tensor",
    "parallel.schedule",
    "parallel.timeout_s",
    "data.tokenizer",
    "training.dtype",
    "training.micro_batch",
    "training.threads",
    "moe.grouped",
    "moe.dispatcher",
)


def find_checkpoint(run: Path, step: int | None) -> tuple[Path, Manifest, list[str]]:
    """The newest checkpoint of a run directory whose files are all there, or the one that is named; and warnings.

    Raises:
        ConfigError: there is none.
    """
    if not run.is_dir():
        what = "is a file" if run.exists() else "there is no such directory"
        raise ConfigError(f"{run}: {what}; name a run directory, or a checkpoint")
    if (run / manifest.MANIFEST).exists():
        if step is not None:
            raise ConfigError(
                f"--step {step}: {run} is a checkpoint itself; leave --step out, or name its run"
            )
        return run, _readable(run), []
    there = manifest.every(run / "checkpoints") or manifest.every(run)
    if not there:
        raise ConfigError(f"{run}: there is no checkpoint in it; name a run directory that has one")
    if step is not None:
        chosen = [path for path in there if path.name.startswith(manifest.name(step))]
        if not chosen:
            names = ", ".join(str(int(path.name[5:13])) for path in there[-8:])
            raise ConfigError(f"--step {step}: {run} has no checkpoint after it, but after {names}")
        return chosen[0], _readable(chosen[0]), []
    faults: list[str] = []
    for path in reversed(there):
        try:
            saved = _readable(path)
        except Damaged as error:
            faults.append(f"checkpoint {path} {error.what}")
            continue
        return path, saved, [f"{fault}; {path.name} is used" for fault in faults]
    raise ConfigError(f"{run}: no checkpoint is whole: {'; '.join(faults)}")


def _readable(path: Path) -> Manifest:
    """The manifest; ConfigError where it does not say what the run was."""
    saved = manifest.read(path)
    if saved.first_format:
        raise ConfigError(
            f"checkpoint {path} is of format 1, which does not hold its run's configuration; train a step from it "
            "(checkpoint.load), which writes another"
        )
    return saved


def configured(
    saved: Manifest, path: Path, overrides: Sequence[str], world_size: int
) -> tuple[Config, list[str]]:
    """The configuration of a checkpoint's run for one process, or for the layout of `overrides`; and warnings.

    Raises:
        ConfigError: a setting that has no effect on what is generated; or settings that do not fit together.
    """
    config = unflatten(saved.config, f"checkpoint {path}")
    given, sources = read_config(None, list(overrides))
    values = flatten(given)
    for key, source in sources.items():
        if key not in SETTINGS:
            raise ConfigError(
                f"{source}: generation takes {key} from the run, or has no use for it; leave it out (hcmegatron "
                "generate --help says what may be given)"
            )
        section, _, leaf = key.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, values[key])
    parallel = replace(given.parallel, distributed_optimizer=False)
    # a batch that any number of ranks and any schedule takes: no step is trained
    share = math.lcm(world_size, smallest_world(replace(config, parallel=parallel)))
    batch = config.training.micro_batch * share * 2 * parallel.pipeline
    config = replace(
        config,
        # what this machine has, where the run asked for what its own had
        implementation="auto" if config.implementation == "te" else config.implementation,
        kernels="auto" if config.kernels in ("triton", "native") else config.kernels,
        parallel=parallel,
        training=replace(config.training, global_batch=batch),
        recompute=Recompute(),
        health=Health(),
        checkpoint=Checkpoint(),
        run=Run(),
    )
    asked_for = tuple(f"{key} = " for key in sources)  # of the others the run was warned
    warnings = [line for line in check_config(config, sources) if line.startswith(asked_for)]
    if world_size > 1:
        check_world(config, world_size)
    return config, warnings
