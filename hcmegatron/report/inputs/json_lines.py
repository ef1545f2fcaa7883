"""A file of JSON lines that a run may be writing, read on from where the last look ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class JsonLines:
    """The objects of a file of JSON lines.

    A run that goes on from a checkpoint, or goes back to one, puts a new file in the old one's place: then all is read
    again. A last line without its end is left for the next look, since it may be being written.

    Attributes:
        entries: so far, in order.
        unreadable: lines so far that are no JSON object.
        torn: whether the last line has no end.
        replaced: how often another file was found in the old one's place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replaced = -1
        self._file: tuple[int, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.unreadable, self.torn, self._at = 0, False, 0
        self.replaced += 1

    def look(self) -> bool:
        """Read what is new. Returns whether there was anything; a file that is not there has nothing."""
        try:
            with self.path.open("rb") as stream:
                found = stream.seek(0, 2)
                status = self.path.stat()
                identity = status.st_dev, status.st_ino
                if self._file not in (None, identity) or found < self._at:
                    self._begin()
                self._file = identity
                if found == self._at:
                    return False
                stream.seek(self._at)
                text = stream.read(found - self._at)
        except OSError:
            return False
        whole, end, rest = text.rpartition(b"\n")
        self.torn = bool(rest.strip())
        self._at += len(whole) + len(end)
        for line in whole.splitlines():
            self._add(line)
        return bool(end)

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or brackets without end
            entry = None
        if isinstance(entry, dict):
            self.entries.append(entry)
        else:
            self.unreadable += 1


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file holds; None where there is no such file.

    Raises:
        ValueError: there is, and nothing of the kind can be read in it.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return found


def or_remark(run: Path, read: Callable[[], Any], remarks: list[str]) -> Any:
    """What is read of a run directory; None, and a remark more, where that is damaged or of another format."""
    try:
        return read()
    except ValueError as error:
        remarks.append(str(error).replace(f"{run}/", ""))
        return None


def stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file or folder does; None where it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines, a last one without its end too; none where there is no such file."""
    lines = JsonLines(path)
    lines.look()
    return lines.entries
