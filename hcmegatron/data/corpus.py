"""Which files are read, and which of them are held out. No torch: errors come before anything starts.

The default corpus is the source of Python's own standard library, which is wherever this program runs.
A file is held out by a hash of its path relative to the corpus, so the split depends neither on the place of
the corpus nor on its other files. Where the files are too few for that, the end of the largest is held out.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Data

# Not the library's own text: installed packages, builds for this machine, a program that may not be there.
_FOREIGN = {"site-packages", "dist-packages", "idlelib", "lib-dynload"}
_FOREIGN_PREFIXES = (".", "__pycache__", "config-", "_sysconfigdata")


@dataclass(frozen=True)
class Document:
    """Bytes start..stop of a file; each document ends with one end-of-document token."""

    path: Path
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Bytes and the end of the document."""
        return self.stop - self.start + 1


@dataclass(frozen=True)
class Corpus:
    """The documents to train on and those held out, in an order that every machine agrees on."""

    name: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    fingerprint: str  # of every file's name, size and bytes

    def read(self, documents: tuple[Document, ...]) -> list[bytes]:
        """The documents' bytes. ConfigError where a file cannot be read, changed its size or is not text."""
        return [_read(document) for document in documents]


def find(data: Data) -> Corpus:
    """The corpus of a configuration. ConfigError names the path that is missing, empty, unreadable or binary.

    Every file is opened and looked through, so that a later read in many ranks does not fail.
    """
    files = _listed(data) if data.paths else _standard_library()
    seen: set[Path] = set()
    documents: list[tuple[str, Document]] = []
    for relative, path in files:
        real = path.resolve()
        size = path.stat().st_size
        if (
            real in seen or size == 0
        ):  # a file named twice would be trained on twice, or held out and trained on
            continue
        seen.add(real)
        documents.append((relative, Document(path, 0, size)))
    if not documents:
        raise ConfigError(f"data.paths = {data.paths}: every file is empty; name files with text")
    digest = hashlib.sha256()
    for relative, document in documents:
        raw = _read(document)
        digest.update(f"{relative}:{len(raw)}:".encode(errors="surrogateescape") + raw)
    train, heldout = _split(documents, data.holdout)
    _long_enough("training", train, data)
    if data.holdout > 0:
        _long_enough("held-out", heldout, data)
    name = ", ".join(data.paths) if data.paths else "the standard library's own sources"
    return Corpus(name, tuple(train), tuple(heldout), digest.hexdigest()[:16])


def _standard_library() -> list[tuple[str, Path]]:
    """(relative path, path) of the library's .py files, without what packages or this build added."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "abc.py").is_file():
        raise ConfigError(
            f"data.paths is empty, and this Python has no standard library sources in {root}; "
            "name text files or directories"
        )
    root = root.resolve()
    files = []
    for relative, path in _walk(root, (".py",), lambda n: n in _FOREIGN or n.startswith(_FOREIGN_PREFIXES)):
        if path.resolve().is_relative_to(root):  # a link leads to the distribution's own configuration
            files.append((relative, path))
    return files


def _listed(data: Data) -> list[tuple[str, Path]]:
    """(relative path, path) of the files named, and of those in the directories named."""
    files: list[tuple[str, Path]] = []
    for name in data.paths:
        path = Path(name)
        if path.is_dir():
            inside = _walk(path, tuple(data.suffixes), lambda n: n.startswith(".") or n == "__pycache__")
            if not inside:
                raise ConfigError(
                    f"data.paths = {name}: the directory holds no file ending in {', '.join(data.suffixes)}; "
                    "name another, or set data.suffixes"
                )
            files += inside
        elif path.is_file():
            if path.stat().st_size == 0:
                raise ConfigError(f"data.paths = {name}: the file is empty; name files with text")
            files.append((path.name, path))
        else:
            what = "is not a regular file" if path.exists() else "does not exist"
            raise ConfigError(
                f"data.paths = {name}: {path.absolute()} {what}; name text files or directories"
            )
    return files


def _walk(root: Path, suffixes: tuple[str, ...], skip: Callable[[str], bool]) -> list[tuple[str, Path]]:
    """(relative path with slashes, path) of the files under a directory, sorted."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"data.paths: {error.filename} cannot be read: {error.strerror}") from None

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not skip(name)]
        for name in names:
            path = Path(folder, name)
            if name.endswith(suffixes) and not skip(name) and path.is_file():
                found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def _read(document: Document) -> bytes:
    try:
        raw = document.path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.paths: {document.path} cannot be read: {error.strerror}") from None
    if len(raw) < document.stop:
        raise ConfigError(
            f"data.paths: {document.path} became shorter while it was read; leave the corpus alone"
        )
    if (zero := raw.find(b"\0")) >= 0:
        raise ConfigError(
            f"data.paths: {document.path} is binary (byte {zero} is zero); name text files, and not in UTF-16"
        )
    return raw[document.start : document.stop]


def _split(documents: list[tuple[str, Document]], share: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents."""
    every = [document for _, document in documents]
    if share == 0:
        return every, []
    chosen = [_hash(name) < share for name, _ in documents]
    if any(chosen) and not all(chosen):
        pairs = list(zip(every, chosen, strict=True))
        return [d for d, held in pairs if not held], [d for d, held in pairs if held]
    largest = max(every, key=lambda document: document.stop)
    cut = largest.stop - max(1, round(share * sum(document.stop for document in every)))
    if cut <= 0:
        return [d for d in every if d is not largest], [largest]
    head, tail = Document(largest.path, 0, cut), Document(largest.path, cut, largest.stop)
    return [head if d is largest else d for d in every], [tail]


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64


def _long_enough(which: str, documents: list[Document], data: Data) -> None:
    tokens, needed = sum(document.tokens for document in documents), data.sequence_length + 1
    if tokens < needed:
        raise ConfigError(
            f"data.paths = {data.paths}: the {which} text has {tokens} tokens, fewer than "
            f"data.sequence_length + 1 = {needed}; give more text, a shorter sequence or another data.holdout"
        )
