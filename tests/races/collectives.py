"""Collectives and messages with NCCL's and recent torch's rules, gloo moving the data. Import it in ranks only.

A collective that is waited for at once runs on the current stream. One that is not runs on its group's stream, behind
what the current stream has been given, and waiting for it holds up the current stream. The tensors are held by the
work until it is waited for, and are not recorded; a work that nobody waits for is held until it is over (torch since
2.8: pytorch pull request 148590).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.emulated import nccl
from tests.emulated.streams import DEVICE, Event, Stream

IN_PLACE = ("allreduce", "allreduce_coalesced", "broadcast", "reduce")
INTO = (  # (outputs, inputs, options), by the names of several versions of torch
    "_allgather_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "_reduce_scatter_base",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "all_to_all_single",
    "alltoall",
    "alltoall_base",
    "gather",
    "scatter",
)


class Work:
    """As WorkNCCL."""

    waited_for_by_nobody: set[Work] = set()  # noqa: RUF012, of the process

    def __init__(self, event: Event, arrive: Callable[[], None], tensors: Sequence[Tensor]) -> None:
        self._event, self._arrive, self._tensors = event, arrive, tensors
        Work.waited_for_by_nobody.add(self)

    def arrive(self) -> None:
        """The data are there, and no stream knows it."""
        with _disable_current_modes():
            self._arrive()

    def wait(self, *_: Any) -> bool:
        self.arrive()
        DEVICE.current[-1].wait_event(self._event)
        self._let_go()
        return True

    def is_completed(self) -> bool:
        """The host asks until it is: it has waited for the device."""
        self.arrive()
        self._event.synchronize()
        return True

    def _let_go(self) -> None:
        self._tensors = ()
        Work.waited_for_by_nobody.discard(self)


class Over:
    """The work of a collective that was waited for at once."""

    def wait(self, *_: Any) -> bool:
        return True


class Channel(nccl.OnStreams):
    """A group of two ranks that carries messages."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group, f"{group.group_desc}, group {group.group_name}")

    def _begin(self, kind: str, number: int, tensors: list[Tensor], peer: int) -> Work:
        pending = super()._begin(kind, number, tensors, peer)
        return Work(pending._event, pending._finish, tensors)


@contextmanager
def on_streams() -> Iterator[None]:
    """Inside, collectives of every group are on streams, and told to whoever watches the device."""
    streams: dict[str, Stream] = {}
    counts: Counter[str] = Counter()

    def patched(name: str) -> Callable[..., Any]:
        usual = getattr(dist.ProcessGroup, name)

        def collective(group: dist.ProcessGroup, *args: Any, **kwargs: Any) -> Work | Over:
            options = next(a for a in (*args, *kwargs.values()) if hasattr(a, "asyncOp"))
            tensors = [[t for t in tree_leaves(a) if isinstance(t, Tensor)] for a in args if a is not options]
            writes = tensors[0]
            reads = writes if name in IN_PLACE else tensors[1]
            current = DEVICE.current[-1]
            stream = current
            if options.asyncOp:
                own = f"collectives of {group.group_desc}, group {group.group_name}"
                stream = streams.setdefault(own, Stream(name=own))
                stream.wait_stream(current)
            counts[group.group_name] += 1
            for watcher in DEVICE.watchers:
                watcher.access(f"nccl {name}", reads, writes, stream=stream)
            stream.tick(
                "collective",
                number=counts[group.group_name],
                channel=f"group {group.group_name}",
                members=group.size(),
            )
            with _disable_current_modes():
                work = usual(group, *args, **kwargs)
            if not options.asyncOp:
                with _disable_current_modes():
                    work.wait()
                return Over()
            pending = [work]  # gloo's may be waited for once
            return Work(
                stream.record_event(), lambda: pending and pending.pop().wait() and None, [*reads, *writes]
            )

        return collective

    with ExitStack() as patches:
        for name in filter(partial(hasattr, dist.ProcessGroup), (*IN_PLACE, *INTO)):
            patches.enter_context(mock.patch.object(dist.ProcessGroup, name, patched(name)))
        yield
