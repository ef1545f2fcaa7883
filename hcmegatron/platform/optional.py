"""What may be installed besides torch and Megatron-Core, found by feature and told in words.

NVIDIA's apex shares its name with a Pyramid toolkit on the package index, whose presence breaks imports of
it; the two are told apart by their modules, without importing either.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten


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


def not_installed(config: Config) -> list[str]:
    """Settings that ask by name for a package that is not here, in words. Imports none of them.

    A configuration may well be written where nothing is trained: only training has to refuse it."""
    asked = (
        ("kernels", config.kernels == "triton", "triton", "Triton", "auto or torch"),
        (
            "implementation",
            config.implementation == "te",
            "transformer_engine",
            "Transformer Engine",
            "auto or local",
        ),
        ("run.wandb", config.run.wandb != "off", "wandb", "Weights & Biases (hcmegatron[wandb])", "off"),
    )
    idle = ineffective(config)
    values = flatten(config)
    return [
        f"{key} = {values[key]}: {name} is not installed here; install it where the training runs, or use "
        f"{key}={instead}"
        for key, wanted, module, name, instead in asked
        if wanted and key not in idle and importlib.util.find_spec(module) is None
    ]


def require_installed(config: Config) -> None:
    """Raises ConfigError where a setting asks by name for a package that is not there."""
    if lacking := not_installed(config):
        raise ConfigError(lacking[0])


# Modules of an extra that what needs it cannot do without.
EXTRAS = {"train": ("megatron", "tensorboard")}


def require_extra(what: str, extra: str = "train") -> None:
    """That the packages of an extra are installed which the trainer cannot do without.

    Raises:
        ConfigError: `what`, a verb, needs one that is not there.
    """
    if lacking := [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"{what} needs packages that are not installed ({', '.join(lacking)}): pip install 'hcmegatron[{extra}]'"
        )


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
        built = [what for what, module in _EXTENSIONS.items() if importlib.util.find_spec(module) is not None]
        return Package(name, True, f"{_version('apex')}, with fused {' and '.join(built) or 'nothing'}")
    where = folders[0] if folders else spec.origin
    return Package(
        name,
        False,
        f"{where} is another package named apex (Pyramid's), which breaks imports of NVIDIA's; "
        "remove it with: pip uninstall apex",
        alarming=True,
    )


# What apex is built with, each if asked for, by what this project uses of it.
_EXTENSIONS = {"weight gradients": "fused_weight_gradient_mlp_cuda", "norms": "fused_layer_norm_cuda"}


@cache
def fused_weight_gradients() -> ModuleType | None:
    """apex's extension that adds a product to a gradient buffer: wgrad_gemm_accum_fp32(input [tokens, in],
    output gradient [tokens, out], into [out, in]). None where it was not built or does not import."""
    return _extension(_EXTENSIONS["weight gradients"])


@cache
def fused_norms() -> ModuleType | None:
    """apex's functional norms: fused_rms_norm_affine(input, weight, normalized_shape, eps), fused_layer_norm_affine
    (input, weight, bias, normalized_shape, eps). None where its extension was not built or does not import."""
    if not nvidia_apex().usable or _extension(_EXTENSIONS["norms"]) is None:
        return None
    return _extension("apex.normalization.fused_layer_norm")


def _extension(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a build for another torch raises
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            return None  # it is not there, or what it would be in; and not something that it imports
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"{name} is installed but does not import ({reason}); torch is used instead", stacklevel=3
        )
        return None


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
