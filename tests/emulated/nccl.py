"""NCCL's process groups, with gloo in their place. Import it in ranks only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Options:
    """As ProcessGroupNCCL.Options; ``new_group`` writes into it, so that it may serve one group only."""

    is_high_priority_stream: bool = False
    config: SimpleNamespace = field(default_factory=SimpleNamespace)
    taken: bool = False


class Work:
    """Of gloo's, which knows that it is completed once it has been waited for, and may be waited for once."""

    def __init__(self, work: dist.Work) -> None:
        self._work: dist.Work | None = work

    def is_completed(self) -> bool:
        self.wait()
        return True

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None


class Group:
    """What the transport uses of a group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.gloo = group

    def rank(self) -> int:
        return self.gloo.rank()

    def size(self) -> int:
        return self.gloo.size()

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        return Work(self.gloo.send(tensors, peer, tag))

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        return Work(self.gloo.recv(tensors, peer, tag))


@contextmanager
def installed(kind: type[Group] = Group) -> Iterator[list[Options]]:
    """Inside, new groups of NCCL's are gloo's. Yields the options that they were given, in order."""
    usual, usual_end = dist.new_group, dist.destroy_process_group
    given: list[Options] = []

    def new_group(*args: Any, backend: str | None = None, pg_options: Any = None, **others: Any) -> Any:
        if backend != "nccl":
            return usual(*args, backend=backend, pg_options=pg_options, **others)
        assert not pg_options.taken, "options that another group was made with"
        pg_options.taken = True
        given.append(pg_options)
        group = usual(*args, backend="gloo", **others)
        return group if group is dist.GroupMember.NON_GROUP_MEMBER else kind(group)

    def destroy_process_group(group: Any = None) -> None:
        usual_end(group.gloo if isinstance(group, Group) else group)

    with (
        mock.patch.object(dist, "new_group", new_group),
        mock.patch.object(dist, "destroy_process_group", destroy_process_group),
        mock.patch.object(dist, "ProcessGroupNCCL", SimpleNamespace(Options=Options), create=True),
        mock.patch.object(torch.cuda, "synchronize", lambda *_: None),
    ):
        yield given
