"""Megatron-Core, made importable here: every name that moved between the supported versions is taken from this module.

Importing it installs the CPU adapter where CUDA is absent.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Callable

import torch

from hcmegatron.platform import cpu, cuda_environment, optional
from hcmegatron.platform.versions import megatron_core

cuda_environment.prepare(os.environ)
if torch.cuda.is_available():
    importing = contextlib.nullcontext()
else:
    cpu.install()
    importing = cpu.eager()

# Megatron warns of its own defaults, and of every module that lacks an optional package; platform.optional says once
# what is there.
for _message in (
    "Apex is not installed",
    "full scope is deprecated",
    "Transformer Engine",
    ".*legacy GroupedMLP",
    "`load_state_dict` is deprecated",  # torch's, which Megatron's loading calls
):
    warnings.filterwarnings("ignore", message=_message)

if not torch.cuda.is_available():
    # 0.19.2 imports torch's builder of extensions, which warns of a CUDA toolkit on a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

with warnings.catch_warnings(), importing:
    warnings.simplefilter("ignore")
    import megatron.core
    from megatron.core.dist_checkpointing.dict_utils import nested_values as flatten_state_dict
    from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.utils import (
        make_sharded_tensors_for_checkpoint,
        sharded_state_dict_default,
    )

if not torch.cuda.is_available():
    cpu.finish()

VERSION = megatron_core()
# 0.16.1 weighs an auxiliary loss by the tokens of one sequence-parallel rank, 0.19.2 by those of all.
AUXILIARY_LOSS_OF_ONE_RANK = VERSION.startswith("0.16.")

HAVE_TE: bool = optional.transformer_engine().usable
if not HAVE_TE:
    # 0.16.1 sets HAVE_TE here because its own wrapper module imports without Transformer Engine.
    multi_latent_attention.HAVE_TE = False
    # 0.16.1 defines this only with Transformer Engine, and the router's linear looks it up.
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None

logging.getLogger("megatron").setLevel(logging.WARNING)


def experts_of(provider: LocalSpecProvider, grouped: bool) -> Callable:
    """What builds the routed experts that a provider of layers has: 0.16.1 names a module and its parts, 0.19.2 gives
    the builder itself."""
    modules = provider.grouped_mlp_modules
    if "moe_use_legacy_grouped_gemm" in inspect.signature(modules).parameters:
        module, submodules = modules(grouped, False)
        return ModuleSpec(module, submodules=submodules)
    return modules(grouped)


__all__ = [
    "AUXILIARY_LOSS_OF_ONE_RANK",
    "HAVE_TE",
    "VERSION",
    "experts_of",
    "flatten_state_dict",
    "make_sharded_tensors_for_checkpoint",
    "megatron",
    "replace_prefix_for_sharding",
    "sharded_state_dict_default",
]
