"""What files hold, as documents: a text file is one; so is a line of JSON Lines, and a row of Parquet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.inputs import COMPRESSED, File, Piece, kind, open_parquet

LONGEST_TEXT = 1 << 28  # bytes of one document


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


def no_documents(rejected: int, first: Rejected | None) -> ConfigError:
    """What is said of input without a document."""
    why = f": {first.file}:{first.line}: {first.reason}" if first else ""
    return ConfigError(
        f"no document in the input, of {rejected} that were rejected{why}; name other files, or another --field"
    )


def lines_before(piece: Piece) -> int:
    """How many lines or rows of its file are before a piece."""
    file = piece.files[0]
    if not piece.start:
        return 0
    if kind(file.name) == "parquet":
        metadata = open_parquet(file).metadata
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
    if not file.size and not file.name.lower().endswith(COMPRESSED):
        yield Rejected(file.name, 1, "empty")
        return
    with _opened(file) as stream:
        if start:
            stream.seek(start - 1)
            _to_the_end_of_the_line(stream)  # of the piece before
        number = 0
        while stop is None or stream.tell() < stop:
            raw = stream.readline(LONGEST_TEXT + 1)
            if not raw:
                if not number:  # nothing is packed in it
                    yield Rejected(file.name, 1, "empty")
                return
            number += 1
            if len(raw) > LONGEST_TEXT and not raw.endswith(b"\n"):
                _to_the_end_of_the_line(stream)
                reason = f"longer than {LONGEST_TEXT >> 20} MiB, which is the most of one line"
                yield Rejected(file.name, number, reason)
                continue
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


def _to_the_end_of_the_line(stream: BinaryIO) -> None:
    while (read := stream.readline(1 << 24)) and not read.endswith(b"\n"):
        pass


def _rows(file: File, start: int, stop: int | None, field: str) -> Iterator[Document | Rejected]:
    parquet = open_parquet(file)
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
    if name.endswith(COMPRESSED) and not file.size:  # which the libraries take for an empty text
        raise ConfigError(
            f"{file.path} cannot be read: it is empty, and nothing packed; copy it again, or remove it"
        )
    if name.endswith(".gz"):
        with gzip.open(file.path) as stream:
            yield stream
        return
    with file.path.open("rb", buffering=1 << 20) as raw:
        if not name.endswith(".zst"):
            yield raw
            return
        try:
            from pyarrow import input_stream  # zstandard's own takes a file that is cut for a whole one
        except ModuleNotFoundError:
            raise ConfigError(
                f"{file.path}: reading .zst needs the package pyarrow; pip install 'hcmegatron[data]'"
            ) from None
        with io.BufferedReader(input_stream(raw, compression="zstd"), 1 << 20) as stream:
            yield stream
