"""What Triton's kernels read and write, by the addresses that its interpreter loads from and stores to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.emulated.races import Checker


class _Touched:
    """The tensors of one launch."""

    def __init__(self, arguments: list[Any]) -> None:
        self.reads: dict[int, Tensor] = {}
        self.writes: dict[int, Tensor] = {}
        self._given = [(a.data_ptr(), _bytes(a), a) for a in tree_leaves(arguments) if isinstance(a, Tensor)]

    def note(self, found: dict[int, Tensor], addresses: np.ndarray, mask: np.ndarray) -> None:
        """One load or store stays within one tensor: its first address says which."""
        used = addresses[mask]
        if used.size:
            first = int(used.flat[0])
            for start, size, tensor in self._given:
                if start <= first < start + size:
                    found[id(tensor)] = tensor


def _bytes(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


@contextmanager
def watched(checker: Checker) -> Iterator[None]:
    """Inside, launches are operations that the checker looks at."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    usual = interpreter.GridExecutor.__call__
    usual_load, usual_store = builder.create_masked_load, builder.create_masked_store
    usual_atomic = builder.create_atomic_rmw
    launches: list[_Touched] = []

    def load(own: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        launches[-1].note(launches[-1].reads, ptrs.data, mask.data)
        return usual_load(own, ptrs, mask, *others)

    def store(own: Any, ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        launches[-1].note(launches[-1].writes, ptrs.data, mask.data)
        return usual_store(own, ptrs, value, mask, *others)

    def atomic(own: Any, operation: Any, ptr: Any, value: Any, mask: Any, *others: Any) -> Any:
        for found in (launches[-1].reads, launches[-1].writes):
            launches[-1].note(found, ptr.data, mask.data)
        return usual_atomic(own, operation, ptr, value, mask, *others)

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        touched = _Touched([args, kwargs])
        launches.append(touched)
        with _disable_current_modes():
            usual(executor, *args, **kwargs)
        launches.pop()
        checker.access(
            f"triton {executor.fn.__name__}", [*touched.reads.values()], [*touched.writes.values()]
        )

    with (
        mock.patch.object(builder, "create_masked_load", load),
        mock.patch.object(builder, "create_masked_store", store),
        mock.patch.object(builder, "create_atomic_rmw", atomic),
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
    ):
        yield
