"""What is in a prepared data set: a sequence of it in words, and whether its files are still what was written."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.blend import PreparedSet
from hcmegatron.data.mapped import open_set
from hcmegatron.data.prepared import TOKENS, Manifest
from hcmegatron.data.text import Windows
from hcmegatron.data.tokenizer_registry import build_tokenizer

_READ = 1 << 22  # tokens or bytes at once


def sequence(path: Path, manifest: Manifest, number: int, length: int) -> Iterator[str]:
    """Lines on one window of a data set: each document in it, with its tokens and its text.

    Raises:
        ConfigError: there is no such window, or a file is damaged.
    """
    if length < 1:
        raise ConfigError(f"--length {length}: at least 1")
    if length >= manifest.tokens:
        raise ConfigError(f"--length {length}: {path} has {manifest.tokens} tokens; give a smaller one")
    windows = Windows([str(path)], [open_set(PreparedSet(str(path), path, manifest), 0)[0]], length)
    if not 0 <= number < len(windows):
        raise ConfigError(
            f"--sample {number}: {path} has sequences 0 to {len(windows) - 1} of {length} tokens"
        )
    own = path / manifest.tokenizer
    tokenizer = build_tokenizer(str(own) if own.is_file() else manifest.tokenizer)
    row = windows[number]
    yield f"sequence {number} of {len(windows):,}: tokens {number * length:,} to {number * length + length:,}"
    ends = np.flatnonzero(row == manifest.end_of_document) + 1
    begin = 0
    for stop in [*ends.tolist(), *([len(row)] if not len(ends) or ends[-1] < len(row) else [])]:
        ids = row[begin:stop]
        ended = ids[-1] == manifest.end_of_document
        yield f"--- {stop - begin} tokens of a document{', and its end' if ended else ''}"
        yield " ".join(map(str, ids.tolist()))
        yield tokenizer.decode(ids)
        begin = stop


def faults(path: Path, manifest: Manifest) -> list[str]:
    """One line for everything in a data set's files that is not as it was written."""
    found = []
    for name, (_, crc) in manifest.files.items():
        there = 0
        with (path / name).open("rb") as stream:
            while chunk := stream.read(_READ):
                there = zlib.crc32(chunk, there)
        if there != crc:
            found.append(
                f"{name} has the CRC-32 {there:08x}, and {crc:08x} was written; copy or prepare it again"
            )
    if any(line.startswith(f"{TOKENS}.idx") for line in found):
        return found
    tokens, _ = open_set(PreparedSet(str(path), path, manifest), 0)
    index, size = tokens.dataset.index, np.dtype(tokens.dataset.index.dtype).itemsize
    begins, lengths = index.sequence_pointers, index.sequence_lengths
    if len(lengths) != manifest.documents or int(lengths.sum(dtype=np.int64)) != manifest.tokens:
        found.append(f"{TOKENS}.idx has other documents or tokens than the manifest")
    elif begins[0] != 0 or (np.diff(begins) != lengths[:-1].astype(np.int64) * size).any():
        found.append(f"{TOKENS}.idx: documents do not follow each other")
    for at in range(0, len(tokens), _READ):
        if int(tokens[at : at + _READ].max()) >= manifest.vocab_size:
            found.append(f"{TOKENS}.bin has an id beyond the vocabulary of {manifest.vocab_size:,}")
            break
    return found
