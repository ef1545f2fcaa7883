"""Kernels that are loaded at their first launch, which waits for the device; import it in ranks only.

A receive that is posted occupies the device until its message comes, so that a kernel whose first launch comes between
the two waits for ever. Here it raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from schedules.runtime.torch_distributed import DistributedTransport
from schedules.runtime.transport import Pending
from schedules.schedule import Message

ON_THE_HOST = ("aten._local_scalar_dense", "aten.detach", "aten.alias", "aten.lift_fresh", "prim.")


class LoadedWhileReceiving(RuntimeError):
    """What would hang on a GPU."""


class Loading(TorchDispatchMode):
    """Knows every kernel, an operation with the dtypes of its tensors, that has been launched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: set[tuple] = set()
        self.receives = 0  # posted, and not yet waited for

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        if not name.startswith(ON_THE_HOST) and not func.is_view:
            dtypes = tuple(t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
            kernel = name, dtypes
            if kernel not in self.loaded and self.receives:
                raise LoadedWhileReceiving(
                    f"{kernel} is launched for the first time beside {self.receives} receives"
                )
            self.loaded.add(kernel)
        return result


class _Receive:
    def __init__(self, loading: Loading, pending: Pending) -> None:
        self.loading, self.pending = loading, pending
        loading.receives += 1

    def wait(self) -> None:
        self.pending.wait()
        self.loading.receives -= 1


@contextmanager
def loading() -> Iterator[Loading]:
    """Inside, a first launch beside a posted receive raises LoadedWhileReceiving."""
    usual = DistributedTransport.receive
    with Loading() as mode:

        def receive(transport: DistributedTransport, message: Message, buffer: torch.Tensor) -> Pending:
            return _Receive(mode, usual(transport, message, buffer))

        with mock.patch.object(DistributedTransport, "receive", receive):
            yield mode
