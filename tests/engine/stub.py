"""A Transformer Engine for the CPU: its PyTorch modules' signatures and contracts, computed by torch in 16 and 32 bits.

Importing this module installs it, which has to come before Megatron-Core. It keeps to what the published source does
with weight gradients (pytorch/module/{base,linear,grouped_linear,layernorm_linear,_common}.py): the store that delays
them, `main_grad` and the placeholder that autograd is shown, `backward_dw`, saved weights that lose their attributes
under hooks, grouped layers whose delayed gradients without `main_grad` are uninitialised memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.engine.signatures import RECORDED, recorded, versions
from tests.engine.stub_linear import Linear, TransformerEngineBaseModule, WeightGradStore, get_dummy_wgrad
from tests.engine.stub_modules import (
    DotProductAttention,
    GroupedLinear,
    LayerNorm,
    LayerNormLinear,
    RMSNorm,
    general_gemm,
)

VERSION = versions()[0]


def _module(name: str, **members: Any) -> ModuleType:
    full = f"transformer_engine.{name}" if name else "transformer_engine"
    module = sys.modules.setdefault(full, ModuleType(full))
    module.__spec__ = ModuleSpec(full, None, is_package=True)
    module.__path__ = []
    for key, value in members.items():
        setattr(module, key, value)
        if isinstance(value, type):
            value.__module__ = full
    if name:
        parent, _, own = full.rpartition(".")
        setattr(sys.modules.get(parent) or _module(parent.removeprefix("transformer_engine.")), own, module)
    return module


# What Megatron-Core only has to find.


def _unused(name: str) -> Callable:
    @recorded(name)
    def function(**_: Any) -> None:
        raise NotImplementedError(f"{name} is not part of the stub")

    return function


class CudaRNGStatesTracker:
    pass


class FP8GlobalStateManager:
    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


class QuantizedTensor:
    pass


class DelayedScaling:
    pass


for _method in ("backward_dw", "need_backward_dw"):
    _name = f"pytorch.Linear.{_method}"
    if _name in RECORDED[VERSION]:
        setattr(
            TransformerEngineBaseModule,
            _method,
            recorded(_name)(getattr(TransformerEngineBaseModule, _method)),
        )

_module("", __version__=VERSION)
_module("common")
_module("common.recipe", DelayedScaling=DelayedScaling)
_module("pytorch", DotProductAttention=DotProductAttention)
_module(
    "pytorch.module.base",
    get_dummy_wgrad=get_dummy_wgrad,
    TransformerEngineBaseModule=TransformerEngineBaseModule,
    **(
        {"get_workspace": lambda: None}
        if "workspace" in RECORDED[VERSION]["pytorch.cpp_extensions.general_gemm"]
        else {}
    ),
)
_module("pytorch.module._common", WeightGradStore=WeightGradStore)
for _class, _file in (
    (Linear, "linear"),
    (GroupedLinear, "grouped_linear"),
    (LayerNormLinear, "layernorm_linear"),
    (LayerNorm, "layernorm"),
    (RMSNorm, "rmsnorm"),
):
    _module(f"pytorch.module.{_file}", **{_class.__name__: _class})
    setattr(sys.modules["transformer_engine.pytorch"], _class.__name__, _class)
_module("pytorch.fp8", FP8GlobalStateManager=FP8GlobalStateManager)
_module("pytorch.tensor", QuantizedTensor=QuantizedTensor)
_module(
    "pytorch.distributed",
    CudaRNGStatesTracker=CudaRNGStatesTracker,
    activation_recompute_forward=None,
    is_fp8_activation_recompute_enabled=lambda: False,
)
_module(
    "pytorch.ops", Sequential=type("Sequential", (), {}), FusibleOperation=type("FusibleOperation", (), {})
)
_module("pytorch.cpp_extensions", general_gemm=general_gemm)
for _name in RECORDED[VERSION]:
    _place, _, _function = _name.rpartition(".")
    if _place.split(".")[-1] in ("permutation", "router", "rope", "cross_entropy", "fp8"):
        _module(_place, **{_function: _unused(_name)})
