"""Where a run's lines go. That a place takes no more of them is said once, and is no failure of the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hcmegatron.config.errors import ConfigError

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # nobody reads any more: a closed pipe, a lost terminal
KEPT = 16 * 2**20  # bytes that wait for room on a full disk


class Sink:
    """Writes text to a file descriptor, and keeps what does not go through for the next attempt.

    A file for rich's console too.

    Args:
        name: in words, for the report.
        descriptor: is closed by `close` where it is not a standard stream.
        report: is told once, in one line, that this place fails.
    """

    encoding = "utf-8"

    def __init__(self, name: str, descriptor: int, report: Callable[[str], None]) -> None:
        self.name, self.descriptor, self._report = name, descriptor, report
        self._waiting = b""
        self._failed = self._gone = False

    @classmethod
    def append(cls, path: Path, report: Callable[[str], None]) -> Sink:
        """A file that is added to; OSError where it cannot be opened."""
        return cls(str(path), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), report)

    def write(self, text: str) -> int:
        """Write `text`, after what is still waiting."""
        if self._gone:
            return len(text)
        self._waiting += text.encode(self.encoding, "backslashreplace")
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self.descriptor, self._waiting) :]
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return os.isatty(self.descriptor)

    def fileno(self) -> int:
        """The descriptor."""
        return self.descriptor

    def close(self) -> None:
        """Try once more what is waiting, and give the file back. A second time does nothing."""
        self.write("")
        self._gone = True
        if self.descriptor > 2:
            os.close(self.descriptor)
            self.descriptor = -1

    def _fail(self, error: OSError) -> None:
        full = error.errno not in GONE and len(self._waiting) <= KEPT
        if not full:
            self._gone, self._waiting = True, b""
        if not self._failed:
            self._failed = True
            later = "what is missing follows when it does" if full else "nothing more is written there"
            self._report(
                f"{self.name} takes no lines ({os.strerror(error.errno)}): training goes on, {later}"
            )


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """Within it, files of a run directory are opened: ConfigError where one cannot be."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"run.dir = {directory}: {error.filename} cannot be written: {error.strerror}; make room, or choose another"
        ) from None
