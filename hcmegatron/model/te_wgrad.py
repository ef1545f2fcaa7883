"""Weight gradients of Transformer Engine's layers: left for later where a backward is split, through their own
`backward_dw`.

In its backward such a layer asks its `wgrad_store` whether weight gradients are delayed, hands over what they need,
and computes them in `backward_dw` (2.3 and later: pytorch/module/_common.py, base.py, grouped_linear.py). Here the
store is one of ours that always says so: the chunk's WeightGradStore decides when, in which order, and what is kept.
The layer adds to `main_grad` itself, in its precision. What autograd is shown for a weight is a placeholder, or nothing
where hooks on saved tensors (recomputation) have taken the weight's attributes, so that a gradient is reported from
here alone: when it has been added. Norms inside a layer get their gradients in the input's backward, from autograd.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.model.wgrad_store import WeightGradStore

# Layers that hand over once in a backward, all their weights together. (LayerNormMLP does twice.)
_ONCE = ("Linear", "LayerNormLinear", "GroupedLinear")
_FIRST = "2.3"  # the version that has backward_dw


def of_engine(module: nn.Module) -> type | None:
    """The class of Transformer Engine that a module is or extends."""
    return next((b for b in type(module).__mro__ if b.__module__.startswith("transformer_engine")), None)


def kept_back() -> str:
    """Why the Transformer Engine that is installed cannot leave weight gradients for later, in words; empty if it
    can."""
    pytorch = importlib.import_module("transformer_engine.pytorch")
    lacking = [
        name
        for name in ("Linear", "GroupedLinear")
        if "delay_wgrad_compute" not in inspect.signature(getattr(pytorch, name)).parameters
    ]
    return (
        f"Transformer Engine's {' and '.join(lacking)} can do so from version {_FIRST} on" if lacking else ""
    )


def separate(module: nn.Module, store: WeightGradStore) -> str:
    """Let the module's weight gradients go through `store`.

    Args:
        module: of Transformer Engine, in a chunk that is wrapped for training.

    Returns:
        Why they cannot, in words; empty where they do, or where there are none.
    """
    engine = of_engine(module)
    weights = [parameter for name, parameter in module.named_parameters(recurse=False) if _of_linear(name)]
    if not weights:
        return ""
    if getattr(module, "wgrad_store", None) is None or engine.__name__ not in _ONCE:
        return f"it computes them with the input's gradient (needs {', '.join(_ONCE)} of version {_FIRST} or later)"
    if any(
        getattr(module, name, False) for name in ("ub_bulk_wgrad", "ub_bulk_dgrad", "ub_overlap_rs_dgrad")
    ):
        return "it overlaps them with tensor-parallel communication"
    sums = [getattr(weight, "main_grad", None) for weight in weights]
    if any(s is None or s.dtype.itemsize < w.dtype.itemsize for s, w in zip(sums, weights, strict=True)):
        return "its weights have no gradient buffer of at least their own precision"
    module.fuse_wgrad_accumulation = True
    # Else the first forward since Megatron said so overwrites the buffer, whichever weight gradient comes first.
    module.disable_parameter_transpose_cache = True
    module.wgrad_store = _Store(module, engine, weights, store)
    for weight in weights:
        weight.separable = weight.reported = True
    return ""


def _of_linear(name: str) -> bool:
    return name.startswith(("weight", "bias"))


class _Store:
    """In place of a layer's WeightGradStore, and of the queue inside it."""

    def __init__(
        self, module: nn.Module, engine: Any, weights: list[nn.Parameter], store: WeightGradStore
    ) -> None:
        self.module, self.engine, self.weights, self.store = module, engine, weights, store
        self.context = self
        self._due: tuple[list, Callable] | None = None

    def delay_wgrad_compute(self) -> bool:
        """Always: what need not wait is computed as soon as it is handed over."""
        return True

    def put(self, tensor_list: list, func: Callable) -> None:
        """From a backward: the weight gradients are func(*tensor_list)."""
        compute = partial(self._compute, tensor_list, func)
        if self.store.open is None:
            compute()
        else:
            self.store.open.defer(compute, *_tensors(tensor_list[:2]))  # a third are the buffers to add to

    def pop(self) -> tuple[Any, list]:
        """From backward_dw."""
        assert self._due is not None, "backward_dw is called from here alone"
        (tensors, function), self._due = self._due, None
        return function(*tensors), tensors

    def empty(self) -> bool:
        """GroupedLinear asks."""
        return self._due is None

    def _compute(self, tensor_list: list, func: Callable) -> None:
        with torch.no_grad():
            self._due = tensor_list, func
            # Not the module's own: Megatron's does it only where its configuration delays.
            self.engine.backward_dw(self.module)
            for weight in self.weights:
                if weight.grad is not None:  # a bias, whose gradient it adds to nothing
                    weight.main_grad += weight.grad
                    weight.grad = None
                weight.gradient_added()


def _tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return (
        [tensor for part in nested for tensor in _tensors(part)] if isinstance(nested, list | tuple) else []
    )
