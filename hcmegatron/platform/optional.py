"""What may be installed besides torch and Megatron-Core, found by feature and told in words.

NVIDIA's apex shares its name with a Pyramid toolkit on the package index, whose presence breaks imports of
it; the two are told apart by their modules, without importing either.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.idle import ineffective
from hcmegatron.config.schema import Config


@dataclass(frozen=True)
class Package:
    """An optional package: whether it can be used, and why, in words."""

    name: str
    usable: bool
    words: str
    alarming: bool = False  # to be said loudly: what is installed does harm


def packages() -> list[Package]:
    """All that this project can make use of."""
    return [transformer_engine(), nvidia_apex(), triton()]


def require_installed(config: Config) -> None:
    """Raises ConfigError where a setting asks by name for a package that is not there. Imports none of them."""
    asked = (
        ("kernels", "triton", "triton", "Triton", "auto or torch"),
        ("implementation", "te", "transformer_engine", "Transformer Engine", "auto or local"),
    )
    if config.run.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"run.wandb = {config.run.wandb}: Weights & Biases is not installed; install hcmegatron[wandb], or use "
            "run.wandb=off"
        )
    idle = ineffective(config)
    for key, value, module, name, instead in asked:
        if getattr(config, key) == value and key not in idle and importlib.util.find_spec(module) is None:
            raise ConfigError(f"{key} = {value}: {name} is not installed; install it, or use {key}={instead}")


@cache
def transformer_engine() -> Package:
    """Transformer Engine counts when its PyTorch modules import: it needs CUDA libraries to do so."""
    name = "Transformer Engine"
    if importlib.util.find_spec("transformer_engine") is None:
        return Package(name, False, "not installed; Megatron-Core's own layers are used")
    version = _version("transformer_engine", "transformer-engine")
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a broken CUDA library raises is the answer
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Package(name, False, f"{version} is installed but does not import ({reason}); not used")
    return Package(name, True, version)


@cache
def nvidia_apex() -> Package:
    """NVIDIA's apex, known by its optimizers and normalization modules."""
    name = "NVIDIA apex"
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Package(name, False, "not installed; torch's optimizers and norms are used")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if all(any((folder / part).is_dir() for folder in folders) for part in ("optimizers", "normalization")):
        return Package(name, True, _version("apex"))
    where = folders[0] if folders else spec.origin
    return Package(
        name,
        False,
        f"{where} is another package named apex (Pyramid's), which breaks imports of NVIDIA's; "
        "remove it with: pip uninstall apex",
        alarming=True,
    )


@cache
def triton() -> Package:
    """Triton; whether a device can run its kernels is for the kernels' selection to say."""
    if importlib.util.find_spec("triton") is None:
        return Package("Triton", False, "not installed; the connections run in torch")
    return Package("Triton", True, _version("triton", "pytorch-triton"))


def _version(*distributions: str) -> str:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"
