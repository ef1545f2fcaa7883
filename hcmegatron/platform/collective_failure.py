"""Work whose failure on one rank is every rank's: nobody is left waiting in a collective for one that has given up.

Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from hcmegatron.config.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ended(RuntimeError):
    """A run ends for a reason in words that every rank has found: it is said once, without a traceback.

    Attributes:
        status: the exit status of the command.
    """

    status = 1

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = self.status if status is None else status


class PeerFailed(RuntimeError):
    """Another rank has failed, and says with its traceback why; this one only goes along."""


def on_first_rank(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank. Collective.

    Raises:
        ConfigError: on every rank, where work raised one.
        PeerFailed: on other ranks, where work raised anything else, which rank 0 raises as it is.
    """
    import torch.distributed as dist

    answer: list[Any] = [None, None, None]  # the result, a user's mistake, any other failure
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except ConfigError as error:
            answer[1] = str(error)
        except Exception as error:
            failure, answer[2] = error, in_one_line(error)
    dist.broadcast_object_list(answer, src=0)
    result, mistake, other = answer
    if failure is not None:
        raise failure
    if mistake is not None:
        raise ConfigError(mistake)
    if other is not None:
        raise PeerFailed(f"rank 0 failed: {other}")
    return result


def kept_on_first_rank(work: Callable[[], T]) -> T | None:
    """As `on_first_rank`, for what cannot be sent: the result on rank 0, None elsewhere. Collective."""
    kept: list[T] = []
    on_first_rank(lambda: kept.append(work()))
    return kept[0] if kept else None


def gathered(value: T, group: ProcessGroup | None = None) -> list[T]:
    """Every rank's value, in order of rank. Collective, over all ranks or those of a group."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def in_one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + said[0] if said else ''}"


def timed_out(error: BaseException) -> bool:
    """Whether a collective has waited for another rank until its time was up; gloo and NCCL say so in words alone."""
    return any(words in str(error).lower() for words in ("timed out", "timeout"))
