"""Files that a command writes: all of them or none, each whole. What is no plain file (a device, a pipe, a link) is
written to where it is, and never replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def check(paths: Sequence[Path]) -> None:
    """Before the work whose results they take.

    Raises:
        ValueError: one of them cannot be a file, or is named twice.
    """
    for path in paths:
        if os.path.isdir(path):
            raise ValueError(f"{path}: is a directory, not a file to write")
        if not os.path.isdir(path.parent):
            raise ValueError(f"{path}: there is no directory {path.parent}")
        if paths.count(path) > 1:
            raise ValueError(f"{path}: named for more than one output")


def write(texts: Sequence[tuple[Path, str]]) -> None:
    """Write the texts.

    Raises:
        ValueError: one of them cannot be written; then no plain file has changed.
    """
    check([path for path, _ in texts])
    drafts = [
        (path.with_name(path.name + ".part") if _replaceable(path) else path, path, text)
        for path, text in texts
    ]
    try:
        for draft, path, text in drafts:
            failing = path
            draft.write_text(text, encoding="utf-8")
        for draft, path, _ in drafts:
            failing = path
            if draft != path:
                draft.replace(path)
    except OSError as error:
        for draft, path, _ in drafts:
            if draft != path:
                with suppress(OSError):
                    draft.unlink()
        raise ValueError(f"{failing}: cannot be written: {error.strerror}") from None


def _replaceable(path: Path) -> bool:
    """Whether a new file may take its place."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True  # there is none yet, or writing it will say what is wrong
