"""The verb `replay`: a bad step that a run has kept, once more, in one process. No torch before there is work."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hcmegatron.config import Config, ConfigError, check_config
from hcmegatron.config.schema import Health, Parallel, Recompute, Run
from hcmegatron.config.types import defaults, unflatten
from hcmegatron.connections.kinds.residual import RESIDUAL
from hcmegatron.training import kept_steps, manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.usage = "hcmegatron replay RUN/anomalies/step-00000123 [--checkpoint=DIR]"
    parser.description = (
        "Run every micro-batch of a bad step that a run has kept, forward and backward, in one process whatever the "
        "run's layout was, with the weights of the checkpoint before it: losses, gradient norms by class of "
        "parameter, and which module's output is the first that is not finite. Nothing is written."
    )
    parser.add_argument("path", metavar="STEP", type=Path, help="a kept step, with or without .json")
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, help="other weights than those before it")


def main(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        ConfigError: there is no such step, or its checkpoint is gone, damaged or of another network.
    """
    described, samples, tokens = kept_steps.read(options.path)
    config = alone(described["config"], options.path)
    path = options.checkpoint or (described["checkpoint"] and Path(described["checkpoint"]))
    saved = None
    if path is not None:
        if options.checkpoint is None and not path.exists():
            raise ConfigError(
                f"checkpoint {path}, before the bad step, is not there any more; name another with --checkpoint=DIR"
            )
        saved = manifest.read(path)
        manifest.verify(path, saved)
    print(
        f"step {described['step']}: loss {described['loss']}, gradient norm {described['grad_norm']} "
        f"({described['bad']}); sequences {samples[0]} to {samples[-1]} of the data order, on "
        f"{described['ranks']} ranks"
    )
    after = saved.step if saved else 0
    print(
        f"weights: {path or 'as the configuration initialises them'}, after step {after}; the bad step's were those "
        f"after step {described['step'] - 1}"
    )
    if masks := other_masks(described["config"]):
        print(masks)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from hcmegatron.training.replay import replay

    warm = config.checkpoint.init_from is not None and saved is not None
    of_residual = warm and saved.config.get("connection.kind") == RESIDUAL.name
    for line in replay(config, samples, tokens, path, of_residual):
        print(line, flush=True)
    return 0


def other_masks(settings: dict[str, Any]) -> str:
    """A line where ranks of the run drew masks of dropout that one process does not have (model/dropout.py), or ""."""
    here = {**defaults(), **settings}
    split = {
        "attention": here["model.attention_dropout"] and here["parallel.tensor"] > 1,
        "hidden": here["model.hidden_dropout"] and here["parallel.sequence"],
    }
    if not (which := " and ".join(name for name, differs in split.items() if differs)):
        return ""
    return (
        f"{which} dropout has other masks here than in the run, whose {here['parallel.tensor']} tensor-parallel ranks "
        "each drew their own: losses differ by that too"
    )


def alone(settings: dict[str, object], path: Path) -> Config:
    """The configuration of a kept step, for one process and without recomputation.

    Raises:
        ConfigError: it has settings that this version does not know, or values that it refuses.
    """
    whole = Parallel(distributed_optimizer=False)
    found = unflatten(settings, str(path))
    config = replace(found, parallel=whole, recompute=Recompute(), health=Health(), run=Run())
    check_config(config)
    return config
