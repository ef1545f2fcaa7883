"""One piece of the input as one part of a prepared data set, and parts as the whole. See prepare.py."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from hcmegatron.data.documents import Document, Rejected, documents, lines_before
from hcmegatron.data.inputs import Piece
from hcmegatron.data.prepared import TOKENS, write_json
from hcmegatron.data.tokenizer import Tokenizer
from hcmegatron.platform import megatron as _adapter  # noqa: F401  (before Megatron)
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

BATCH_CHARACTERS = 1 << 20  # encoded at once
_COUNT_AT, _LENGTHS_AT = 18, 34  # bytes into an .idx
REPORTED = 1000  # rejected lines of a part that are listed


@dataclass
class Part:
    """What a part holds: see prepared.Manifest. rejections: (file, line, reason) of the first ones."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    token_bytes: int = 0
    shortest: int | None = None
    longest: int = 0
    rejected: int = 0
    duplicates: int = 0
    rejections: list[Rejected] = field(default_factory=list)
    sizes: tuple[int, int] = (0, 0)  # of .bin and .idx

    def add(self, other: Part) -> None:
        """The part that comes after."""
        for name in ("documents", "tokens", "bytes", "token_bytes", "rejected", "duplicates"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        lengths = [part.shortest for part in (self, other) if part.shortest is not None]
        self.shortest = min(lengths, default=None)
        self.rejections += other.rejections[: max(0, REPORTED - len(self.rejections))]


def write_part(
    piece: Piece, prefix: Path, tokenizer: Tokenizer, text_field: str, kept: np.ndarray | None = None
) -> Part:
    """Tokens of a piece as prefix.bin and prefix.idx; prefix.json, written last, says that they are whole.

    kept: bool for each document of the piece, False for a duplicate of an earlier one; None keeps all.
    """
    part = Part()
    bin_path, idx_path = f"{prefix}.bin", f"{prefix}.idx"
    builder = IndexedDatasetBuilder(bin_path, tokenizer.dtype)
    try:
        for batch in batches_of(_of_interest(piece, text_field, kept, part)):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                builder.add_document(
                    np.append(ids, ids.dtype.type(tokenizer.end_of_document)), [len(ids) + 1]
                )
                part.documents += 1
                part.tokens += len(ids) + 1
                part.bytes += len(text) if text.isascii() else len(text.encode())
                part.token_bytes += int(tokenizer.bytes_of[ids].sum())
                part.longest = max(part.longest, len(ids))
                part.shortest = len(ids) if part.shortest is None else min(part.shortest, len(ids))
    finally:
        builder.data_file.close()  # what it still holds is written here, and may not fit
    builder.finalize(idx_path)
    if part.rejections and (before := lines_before(piece)):
        part.rejections = [one._replace(line=one.line + before) for one in part.rejections]
    for path in (bin_path, idx_path):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    part.sizes = os.path.getsize(bin_path), os.path.getsize(idx_path)
    write_json(Path(f"{prefix}.json"), asdict(part))
    return part


def read_part(prefix: Path) -> Part | None:
    """What a part holds that is whole; None for one that is not."""
    try:
        part = Part(**json.loads(Path(f"{prefix}.json").read_bytes()))
        part.rejections = [Rejected(*one) for one in part.rejections]
        sizes = [os.path.getsize(f"{prefix}.{suffix}") for suffix in ("bin", "idx")]
    except (OSError, ValueError, TypeError):
        return None
    return part if list(part.sizes) == sizes else None


def digests(piece: Piece, text_field: str) -> np.ndarray:
    """[documents, 2] uint64: a hash of every document of a piece, by which duplicates are found."""
    raw = b"".join(
        hashlib.blake2b(one.text.encode(), digest_size=16).digest()
        for one in documents(piece, text_field)
        if isinstance(one, Document)
    )
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def first_occurrences(of_pieces: list[np.ndarray]) -> list[np.ndarray]:
    """For each document of each piece whether no earlier one has its hash."""
    every = np.concatenate(of_pieces)
    order = np.lexsort(every.T)  # stable: of equal hashes the first document comes first
    ordered = every[order]
    repeated = np.zeros(len(every), bool)
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return np.split(~repeated, np.cumsum([len(piece) for piece in of_pieces])[:-1])


def join(
    prefixes: Iterable[Path], out: Path, dtype: type[np.integer], beside: Mapping[str, Path]
) -> dict[str, list[int]]:
    """All parts, in order, as out/tokens.bin and out/tokens.idx; their sizes and CRC-32s, and those of what is copied.

    beside: name in `out` -> a file that is copied there.

    Megatron's builder, which could do it, holds 150 bytes of memory a document; this holds those of one part.
    """
    prefixes = list(prefixes)
    files: dict[str, list[int]] = {}

    def write(name: str, chunks: Iterable[bytes]) -> None:
        partial, size, crc = out / f".{name}.partial", 0, 0
        with partial.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(out / name)
        files[name] = [size, crc]

    write(f"{TOKENS}.bin", (chunk for prefix in prefixes for chunk in _content(f"{prefix}.bin")))
    write(f"{TOKENS}.idx", _index(prefixes, dtype))
    for name, file in beside.items():
        write(name, _content(file))
    return files


def _index(prefixes: list[Path], dtype: type[np.integer]) -> Iterator[bytes]:
    """The format of megatron.core.datasets.indexed_dataset: a header; the length of every sequence, int32; where it
    begins in the .bin, in bytes, int64; and, int64, with which sequence each document ends. Here each is one."""

    def lengths() -> Iterator[np.ndarray]:
        for prefix in prefixes:
            count = np.fromfile(f"{prefix}.idx", "<u8", 1, offset=_COUNT_AT)[0]
            if count:
                yield np.fromfile(f"{prefix}.idx", "<i4", count, offset=_LENGTHS_AT)

    count = sum(map(len, lengths()))
    header = np.array([1], "<u8").tobytes() + np.array([DType.code_from_dtype(dtype)], "<u1").tobytes()
    yield b"MMIDIDX\x00\x00" + header + np.array([count, count + 1], "<u8").tobytes()
    for of_part in lengths():
        yield of_part.tobytes()
    begin = 0
    for of_part in lengths():
        ends = begin + np.cumsum(of_part, dtype=np.int64) * np.dtype(dtype).itemsize
        yield np.concatenate([[begin], ends[:-1]]).astype("<i8").tobytes()
        begin = int(ends[-1])
    for at in range(0, count + 1, 1 << 20):
        yield np.arange(at, min(at + (1 << 20), count + 1), dtype="<i8").tobytes()


def _content(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 22):
            yield chunk


def _of_interest(piece: Piece, text_field: str, kept: np.ndarray | None, part: Part) -> Iterator[str]:
    """The texts of a piece; what is left out of it is counted."""
    number = -1
    for one in documents(piece, text_field):
        if isinstance(one, Rejected):
            part.rejected += 1
            if len(part.rejections) < REPORTED:
                part.rejections.append(one)
            continue
        number += 1
        if kept is not None and not kept[number]:
            part.duplicates += 1
        else:
            yield one.text


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts that are encoded at once: about so many characters, whole texts."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
