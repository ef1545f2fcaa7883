"""Work on files that every rank does or none has done: where one cannot, all of them hear of it, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from hcmegatron.platform.collective_failure import PeerFailed, gathered, in_one_line
from hcmegatron.training.shard_files import FAULTS, cause, reason

T = TypeVar("T")

# What a file system, or a machine without room, answers. Anything else that saving raises is a mistake of this program.
UNWRITABLE = (OSError, MemoryError, torch.OutOfMemoryError)
# What torch raises where a file is not what it was: of reading, all but what only a mistake of this program raises.
MISTAKES = (TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError)


class NotDone(Exception):
    """A rank could not write or read, for a reason in words."""


def unwritable(error: BaseException) -> bool:
    """Whether it is the machine's, and not this program's, that something could not be written."""
    return isinstance(cause(error), UNWRITABLE)


def unreadable(error: BaseException) -> bool:
    """Whether it may be a file's that something could not be read."""
    return not isinstance(cause(error), MISTAKES)


def everywhere(
    work: Callable[[], T],
    expected: Callable[[BaseException], bool] = unwritable,
    group: dist.ProcessGroup | None = None,
) -> T:
    """What `work` returned on this rank, once every rank has done it. Collective.

    Args:
        expected: whether a failure is one of the machine's, which its one line says.
        group: of all ranks; None is the default one.

    Raises:
        NotDone: on every rank, where such a failure came on one.
        PeerFailed: on the others, where any other failure came on one, which that one raises as it is.
    """
    failure, answer = None, None
    try:
        answer = work()
    except FAULTS as error:
        failure = error
    told = None if failure is None else (expected(failure), reason(failure))
    failures = {rank: found for rank, found in enumerate(gathered(told, group)) if found is not None}
    if failure is not None and not told[0]:
        if isinstance(failure, Exception):
            raise failure
        # torch's own would pass by whoever says what ended a rank
        raise RuntimeError(in_one_line(failure)) from failure
    for rank, (is_expected, words) in failures.items():
        if not is_expected:
            raise PeerFailed(f"rank {rank} failed: {words}")
    if failures:
        raise NotDone(next(words for _, words in failures.values()))
    return answer
