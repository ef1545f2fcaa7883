"""Ends a job that no longer moves, after every rank has said where it is.

A thread of each process looks at the position of its rank. A rank that makes no progress, or whose step
failed, raises an alarm that all ranks see through a store (torch.distributed's key-value store). Every rank
then prints its position, writes it and the stacks of its threads to ``hang/rank-<r>.txt`` and ends its process:
what hangs inside a collective or a kernel cannot be ended in a gentler way. Ranks also leave their position
in the store now and then, so that what a killed rank was doing is known too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from schedules.runtime.position import Position

if TYPE_CHECKING:  # torch.distributed has them, and its annotations do not say so
    from torch._C._distributed_c10d import PrefixStore, Store
else:
    from torch.distributed import PrefixStore, Store

EXIT_CODE = 124  # as of timeout(1)


class Watchdog:
    """Started on creation, one per process; ``close`` ends it.

    ``limit``: seconds without progress after which the process has ended; choose it above the longest single
    computation of a stage, compilation in the first step included. ``store`` is shared by the ``ranks`` that
    are to be told; its calls have to be independent of other users of the process (``store.clone()``).
    ``record`` is given the directory of the report, and may add to it what a communication library has written down.
    Uses ``faulthandler.dump_traceback_later``, of which a process has one only.
    ValueError for a limit that is not positive.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: int,
        limit: float,
        directory: Path,
        record: Callable[[Path, int], None] | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError(f"watchdog: limit={limit}; a number of seconds above 0")
        self.rank, self.ranks, self.limit = rank, ranks, limit
        self.directory, self._record = directory / "hang", record
        self._store = PrefixStore("watchdog", store)
        self._poll = min(1.0, limit / 10)
        self._position: Position | None = None
        self._raised = False
        self._closed = threading.Event()
        self._reporting = threading.Lock()  # taken once, and kept
        self._thread = threading.Thread(target=self._watch, name="pipeline watchdog", daemon=True)
        self._thread.start()

    def watch(self, position: Position) -> None:
        """From now on this is the rank's position."""
        self._position = position

    def trip(self, reason: str) -> None:
        """Reports on behalf of the calling thread, whose step has failed, and gives the other ranks the time
        to see it before this one's connections close. If the process has not ended by itself soon after, the
        watchdog ends it."""
        if self._report(reason):
            self._settle()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(self._poll):
            # Ends the process, with its stacks on stderr, even if this thread never runs again: because
            # somebody keeps Python's interpreter lock, or because the store has gone silent.
            faulthandler.dump_traceback_later(self.limit, exit=True, file=sys.__stderr__ or 2)
            position = self._position
            reported = False
            # Four polls before the limit: one to notice, two to settle, one to spare.
            if position is not None and position.idle > self.limit - 4 * self._poll:
                reported = self._report(f"rank {self.rank} has made no progress for {position.idle:.1f} s")
            try:
                if self._store.check(["alarm"]):
                    reported |= self._report(self._store.get("alarm").decode())
                else:
                    self._store.set(f"position {self.rank}", self._where())
            except RuntimeError as error:
                reported |= self._report(f"the store does not answer: {_first_line(error)}")
            if reported:
                self._settle()
                os._exit(EXIT_CODE)
            elif self._reporting.locked():  # the main thread has, and should be on its way out
                time.sleep(4 * self._poll)
                os._exit(EXIT_CODE)

    def _report(self, reason: str) -> bool:
        """Whether this call made the report: only the first one of a process does."""
        if not self._reporting.acquire(blocking=False):
            return False
        _print(f"pipeline stopped: {reason}\n  {self._where()}")
        try:
            self._write(reason)
        except Exception as error:  # a full disk must not keep a hung job alive
            _print(f"rank {self.rank} could not write all of {self.directory}: {_first_line(error)}")
        try:
            self._store.set(f"reported {self.rank}", "")
            if not self._store.check(["alarm"]):
                self._raised = True
                self._store.set("alarm", reason)
        except RuntimeError as error:
            _print(f"rank {self.rank} could not tell the others: {_first_line(error)}")
        return True

    def _write(self, reason: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / f"rank-{self.rank}.txt", "w") as file:
            file.write(f"{reason}\n{self._where()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        if self._record is not None:
            self._record(self.directory, self.rank)

    def _settle(self) -> None:
        """Waits for the others to see the alarm. The rank that raised it then speaks for the silent ones."""
        time.sleep(2 * self._poll)
        if not self._raised:
            return
        try:
            for rank in range(self.ranks):
                if not self._store.check([f"reported {rank}"]):
                    _print(f"  no answer from rank {rank}; last heard of: {self._last(rank)}")
        except RuntimeError as error:
            _print(f"rank {self.rank} cannot see who is missing: {_first_line(error)}")

    def _last(self, rank: int) -> str:
        key = f"position {rank}"
        return self._store.get(key).decode() if self._store.check([key]) else "nothing"

    def _where(self) -> str:
        if self._position is None:
            return f"rank {self.rank}: in no step of this runtime"
        return str(self._position)


def _print(text: str) -> None:
    """In one write, so that lines of several ranks do not mix."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that has gone must not keep a hung job alive
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
