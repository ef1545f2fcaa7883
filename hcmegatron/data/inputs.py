"""Files for `hcmegatron data prepare`: which of them, of what kind, and in which pieces of work.

A piece is what one worker turns into one part. Pieces depend on the files alone, and so does the order of documents,
whatever the number of workers.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.corpus import standard_library, walk

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

TEXT = (".txt", ".md", ".rst", ".py", ".text")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 1 << 22
MOST_PIECES = 4096  # of files that can be divided


class File(NamedTuple):
    """A file of input. name: relative to where it was found, in reports and in the order."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Piece:
    """Whole files; or, of a single file, the lines that begin in start..stop, or the row groups start..stop."""

    files: tuple[File, ...]
    start: int = 0
    stop: int | None = None

    @property
    def bytes(self) -> int:
        """Of input, for a progress bar."""
        if self.stop is None or self.files[0].name.endswith(PARQUET):
            return sum(file.size for file in self.files)
        return self.stop - self.start


def find_files(paths: Sequence[str]) -> tuple[list[File], list[str]]:
    """The files named and those of the directories named, in order; and what was passed over there, in words.

    Without paths, the sources of Python's standard library.

    Raises:
        ConfigError: a path that does not exist or that holds nothing that can be read.
    """
    if not paths:
        return [File(name, path, path.stat().st_size) for name, path in standard_library()], []
    found: list[File] = []
    passed_over: list[str] = []
    for name in paths:
        path = Path(name)
        try:
            path.stat()
        except OSError as error:  # such as a name that is too long; of what is not there the word comes below
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise ConfigError(f"{name}: {error.strerror}; name files or directories") from None
        except ValueError:  # a zero byte, of which pathlib says that it is not there
            pass
        if path.is_dir():
            inside = walk(path, ("",), _hidden, links=True)
            if odd := [relative for relative, file in inside if not file.is_file()]:
                raise ConfigError(f"{name}: {odd[0]} is not a regular file; remove it, or name other files")
            known = [(relative, file) for relative, file in inside if kind(relative)]
            if not known:
                suffixes = ", ".join((*TEXT, *LINES, *PARQUET))
                raise ConfigError(
                    f"{name}: none of its {len(inside)} files is text, JSON Lines or Parquet ({suffixes}; .gz and .zst "
                    "of them); name another directory, or files"
                )
            if others := {file.suffix or file.name for relative, file in inside if not kind(relative)}:
                passed_over.append(
                    f"{name}: {len(inside) - len(known)} files of other kinds are passed over "
                    f"({', '.join(sorted(others)[:5])})"
                )
            found += [File(relative, file, file.stat().st_size) for relative, file in known]
        elif path.is_file():
            if kind(path.name) is None:
                raise ConfigError(
                    f"{name}: what {path.suffix or 'a file without a suffix'} holds is not known; text, JSON Lines and "
                    f"Parquet are read by their suffixes ({', '.join((*TEXT, *LINES, *PARQUET))})"
                )
            found.append(File(path.name, path, path.stat().st_size))
        else:
            what = "is no regular file" if path.exists() else "does not exist"
            raise ConfigError(f"{name}: {path.absolute()} {what}; name files or directories")
    once = {file.path.resolve(): file for file in reversed(found)}
    if len(once) < len(found):
        passed_over.append(f"{len(found) - len(once)} files are named twice, and read once")
    return [*reversed(once.values())], passed_over


def kind(name: str) -> str | None:
    """`text`, `lines` or `parquet`; None for what is none of them."""
    bare = name.lower()
    for suffix in COMPRESSED:
        bare = bare.removesuffix(suffix)
    if bare.endswith(PARQUET):
        return "parquet" if bare == name.lower() else None
    return "text" if bare.endswith(TEXT) else "lines" if bare.endswith(LINES) else None


def pieces(files: Sequence[File], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Files as pieces of about so many bytes, more where there is much: never beyond what a directory holds well."""
    size = max(piece_bytes, sum(file.size for file in files) // MOST_PIECES)
    found: list[Piece] = []
    together: list[File] = []
    gathered = 0  # bytes of them

    def close() -> None:
        nonlocal gathered
        if together:
            found.append(Piece(tuple(together)))
            together.clear()
            gathered = 0

    for file in files:
        if kind(file.name) == "text":
            together.append(file)
            gathered += file.size
            if gathered >= size:
                close()
            continue
        close()
        if file.name.lower().endswith(COMPRESSED):
            found.append(Piece((file,)))
        elif kind(file.name) == "lines":
            found += [
                Piece((file,), at, min(at + size, file.size)) for at in range(0, max(file.size, 1), size)
            ]
        else:
            found += _row_groups(file, size)
    close()
    return found


def open_parquet(file: File) -> ParquetFile:
    """pyarrow's ParquetFile. ConfigError where the package is missing, or it is none."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ConfigError(
            f"{file.path}: reading Parquet needs the package pyarrow; pip install 'hcmegatron[data]'"
        ) from None
    try:
        return ParquetFile(file.path)
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{file.path} cannot be read: {error}") from None


def _row_groups(file: File, size: int) -> list[Piece]:
    """Consecutive row groups of about `size` bytes in the file."""
    groups = open_parquet(file).num_row_groups
    each = max(1, groups * size // max(file.size, 1))
    return [Piece((file,), at, min(at + each, groups)) for at in range(0, groups, each)]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
