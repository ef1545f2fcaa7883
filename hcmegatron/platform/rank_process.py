"""A rank that the command has started, inside its process: from its start to what it says of its end."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.collective_failure import Ended, PeerFailed
from hcmegatron.platform.exit_status import USER_ERROR
from hcmegatron.platform.imports import process_is_ours
from hcmegatron.platform.process_signals import FORWARDED, end_with_parent
from hcmegatron.platform.ranks import RankInfo

TORCHRUN_ENDED = signal.SIGRTMIN  # of a rank's torchrun: sent by the kernel, and by nobody else

Worker = Callable[[RankInfo], int]


class Failure(NamedTuple):
    """Why a rank ended. The earliest is the cause; the others lost their peer."""

    time: float  # of the monotonic clock, which the processes of a machine share; of one that went along: inf
    rank: int
    status: int
    text: str  # "": nothing to say beyond the status
    ended: bool = False  # for a reason in words that all ranks have found


def run_rank(
    worker: Worker, place: RankInfo, messages: Connection, parent: int, heard: list[signal.Signals]
) -> None:
    """One rank, from its start to its exit.

    Args:
        messages: takes one Failure, if the worker raised.
        parent: the process that started it, with which it ends.
        heard: the signals that are not ignored.
    """
    process_is_ours()
    os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the parent alone, which passes it on
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in heard:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)  # one may have been waiting
        sys.exit(worker(place))
    except KeyboardInterrupt:
        failure = Failure(
            time.monotonic(), place.rank, 128 + signal.SIGINT, f"rank {place.rank} was ended by SIGINT"
        )
    except ConfigError as error:
        failure = Failure(time.monotonic(), place.rank, USER_ERROR, str(error))
    except Ended as error:
        failure = Failure(time.monotonic(), place.rank, error.status, str(error), ended=True)
    except PeerFailed as error:
        failure = Failure(math.inf, place.rank, 1, f"rank {place.rank}: {error}")
    except Exception:
        text = f"rank {place.rank} of {place.world_size} failed:\n{without_native_frames(traceback.format_exc())}"
        failure = Failure(time.monotonic(), place.rank, 1, text)
    messages.send(failure)
    sys.exit(failure.status)


def without_native_frames(text: str) -> str:
    """A traceback without the C++ stack that torch puts between its message and whatever follows."""
    kept, native = [], False
    for line in text.splitlines():
        if line.startswith("Exception raised from "):
            native = True
        elif native and not line.startswith(("frame #", "<omitting python frames>")):
            native = not line.strip()
        if not native:
            kept.append(line)
    return "\n".join(kept) + "\n"
