"""Files as documents, for `hcmegatron data prepare`: which files, in which pieces of work, and what they hold.

A text file is one document; so is a line of JSON Lines, and a row of Parquet. A piece is what one worker turns into one
part. Pieces depend on the files alone, and so does the order of documents, whatever the number of workers.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.corpus import standard_library, walk

TEXT = (".txt", ".md", ".rst", ".py", ".text")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 1 << 22
MOST_PIECES = 4096  # of files that can be divided
LONGEST_TEXT = 1 << 28  # bytes of one document


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


class Document(NamedTuple):
    """Text, and where it was: its file, and the number of its line or row, counted from 1 within the piece."""

    file: str
    line: int
    text: str


class Rejected(NamedTuple):
    """What is no document, where it was, and why."""

    file: str
    line: int
    reason: str


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

    def close() -> None:
        if together:
            found.append(Piece(tuple(together)))
            together.clear()

    for file in files:
        if kind(file.name) == "text":
            together.append(file)
            if sum(one.size for one in together) >= size:
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


def documents(piece: Piece, field: str) -> Iterator[Document | Rejected]:
    """What a piece holds, in order, a little at a time.

    Args:
        field: of JSON objects and Parquet's columns, the one that is the text.

    Raises:
        ConfigError: a file that cannot be read at all.
    """
    for file in piece.files:
        try:
            if kind(file.name) == "text":
                yield from _text(file)
            elif kind(file.name) == "lines":
                yield from _lines(file, piece.start, piece.stop, field)
            else:
                yield from _rows(file, piece.start, piece.stop, field)
        except (OSError, EOFError, zlib.error) as error:
            what = getattr(error, "strerror", None) or error
            raise ConfigError(f"{file.path} cannot be read: {what}") from None


def lines_before(piece: Piece) -> int:
    """How many lines or rows of its file are before a piece."""
    file = piece.files[0]
    if not piece.start:
        return 0
    if kind(file.name) == "parquet":
        metadata = _parquet(file).metadata
        return sum(metadata.row_group(group).num_rows for group in range(piece.start))
    count, left = 0, piece.start - 1  # a line that begins before and ends within is of the piece before
    with file.path.open("rb") as stream:
        while left > 0:
            read = stream.read(min(left, 1 << 24))
            count, left = count + read.count(b"\n"), left - len(read)
    return count + 1


def _text(file: File) -> Iterator[Document | Rejected]:
    with _opened(file) as stream:
        raw = stream.read(LONGEST_TEXT + 1)
    if len(raw) > LONGEST_TEXT:
        reason = f"longer than {LONGEST_TEXT >> 20} MiB, which is the most of one document: write JSON Lines"
        yield Rejected(file.name, 1, reason)
        return
    try:
        yield _checked(file.name, 1, raw.decode())
    except UnicodeDecodeError as error:
        yield Rejected(file.name, raw.count(b"\n", 0, error.start) + 1, _not_utf8(raw, error))


def _lines(file: File, start: int, stop: int | None, field: str) -> Iterator[Document | Rejected]:
    with _opened(file) as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # of the piece before
        number = 0
        while stop is None or stream.tell() < stop:
            raw = stream.readline(LONGEST_TEXT)
            if not raw:
                return
            number += 1
            if raw.isspace():
                continue
            try:
                written = json.loads(raw)
            except UnicodeDecodeError as error:
                yield Rejected(file.name, number, _not_utf8(raw, error))
                continue
            except (ValueError, RecursionError) as error:
                yield Rejected(file.name, number, f"no JSON: {error}")
                continue
            if not isinstance(written, dict) or field not in written:
                what = f"no field {field}" if isinstance(written, dict) else "no JSON object"
                yield Rejected(file.name, number, what)
            elif not isinstance(written[field], str):
                yield Rejected(file.name, number, f"field {field} is no text")
            else:
                yield _checked(file.name, number, written[field])


def _rows(file: File, start: int, stop: int | None, field: str) -> Iterator[Document | Rejected]:
    parquet = _parquet(file)
    if field not in parquet.schema_arrow.names:
        names = ", ".join(parquet.schema_arrow.names[:8])
        raise ConfigError(f"{file.path}: no column {field} among {names}; name one of them with --field")
    number = 0
    try:
        for batch in parquet.iter_batches(
            64, row_groups=range(start, stop), columns=[field], use_threads=False
        ):
            for value in batch.column(0).to_pylist():
                number += 1
                if isinstance(value, str):
                    yield _checked(file.name, number, value)
                else:
                    yield Rejected(file.name, number, f"column {field} is no text")
    except ValueError as error:  # pyarrow's, of damaged pages
        raise ConfigError(f"{file.path} cannot be read after row {number}: {error}") from None


def _checked(name: str, line: int, text: str) -> Document | Rejected:
    if not text.strip():
        return Rejected(name, line, "empty")
    if "\0" in text:
        return Rejected(name, line, "binary: it holds a zero byte")
    if len(text) > LONGEST_TEXT:
        return Rejected(name, line, f"longer than {LONGEST_TEXT >> 20} Mi characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # what JSON's \ud800 stands for
            return Rejected(name, line, "half of a surrogate pair, which is no character")
    return Document(name, line, text)


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {raw[error.start]:#04x} at {error.start}"


@contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    """The file's content, unpacked."""
    name = file.name.lower()
    if name.endswith(".gz"):
        with gzip.open(file.path) as stream:
            yield stream
        return
    with file.path.open("rb", buffering=1 << 20) as raw:
        if not name.endswith(".zst"):
            yield raw
            return
        try:
            import zstandard
        except ModuleNotFoundError:
            raise ConfigError(
                f"{file.path}: reading .zst needs the package zstandard; pip install 'hcmegatron[data]'"
            ) from None
        try:
            with io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw), 1 << 20) as stream:
                yield stream
        except zstandard.ZstdError as error:
            raise ConfigError(f"{file.path} cannot be read: {error}") from None


def _parquet(file: File):  # noqa: ANN202  (of a package that may not be there)
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
    groups = _parquet(file).num_row_groups
    each = max(1, groups * size // max(file.size, 1))
    return [Piece((file,), at, min(at + each, groups)) for at in range(0, groups, each)]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
