"""Sizes and checksums of files. No torch.

CRC-32 of blocks, the fastest sum of the standard library: it finds every change within 32 neighbouring bits, and any
other but for one in 2**32. Blocks are shared out to ranks and threads, so that one large file keeps all of them busy.
It is no signature: whoever can write a checkpoint can write its checksums.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

BLOCK = 64 * 2**20  # bytes; what one thread reads and sums on its own
_READ = 2**20  # bytes at a time: what stays in a core's cache from the disk to the sum


class File(NamedTuple):
    """A file as it was written: its bytes, and a CRC-32 of every block, in hexadecimal.

    Attributes:
        crc32: None in formats 1 and 2 of a manifest.
        blake2b: of the whole file, in format 2 alone.
    """

    bytes: int
    crc32: tuple[str, ...] | None = None
    blake2b: str | None = None


def described(bytes: int, crc32: list[str] | None = None, blake2b: str | None = None) -> File:
    """A file as a manifest describes it. Raises ValueError or TypeError where that cannot be."""
    if crc32 is None:
        return File(bytes, None, blake2b)
    if len(crc32) != blocks(bytes):
        raise ValueError(f"{len(crc32)} checksums of {blocks(bytes)} blocks")
    return File(bytes, tuple(crc32))


def summed(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """What files are, read from the disk by several threads. Raises OSError."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    parts = [(name, block) for name, size in sizes.items() for block in range(blocks(size))]
    with _threads() as threads:  # summing lets go of the interpreter
        sums = list(threads.map(lambda part: _crc32(folder / part[0], part[1]), parts))
    found: dict[str, list[str]] = {name: [] for name in sizes}
    for (name, _), value in zip(parts, sums, strict=True):
        found[name].append(value)
    return {name: File(sizes[name], tuple(values)) for name, values in found.items()}


def differing(folder: Path, files: Mapping[str, File], share: slice = slice(None)) -> str | None:
    """The first file that is not as it was written, in words; None where all are.

    Args:
        share: of all blocks, in a fixed order: those that are looked at.

    Raises:
        OSError: one cannot be read.
    """
    parts = [(name, block) for name in sorted(files) for block in range(_units(files[name]))][share]

    def look(part: tuple[str, int]) -> str | None:
        name, block = part
        written = files[name]
        if written.blake2b is not None:
            same = _blake2b(folder / name) == written.blake2b
            return None if same else f"{name} is not as it was written (its checksum differs)"
        if written.crc32 is None or _crc32(folder / name, block) == written.crc32[block]:
            return None
        end = min((block + 1) * BLOCK, written.bytes)
        return f"{name} is not as it was written (the checksum of bytes {block * BLOCK} to {end} differs)"

    with _threads() as threads:
        return next((found for found in threads.map(look, parts) if found is not None), None)


def blocks(size: int) -> int:
    """Blocks of a file of so many bytes."""
    return -(-size // BLOCK)


def _units(file: File) -> int:
    """Parts of a file that are looked at on their own."""
    return blocks(file.bytes) if file.crc32 is not None else int(file.blake2b is not None)


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))))


def _crc32(path: Path, block: int) -> str:
    """Of one block; a file that ends early has another one."""
    value, left = 0, BLOCK
    buffer = memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as stream:
        stream.seek(block * BLOCK)
        while left and (count := stream.readinto(buffer[: min(left, _READ)])):
            value = zlib.crc32(buffer[:count], value)
            left -= count
    return f"{value:08x}"


def _blake2b(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
