"""Which files are read, and which of them are held out. No torch: errors come before anything starts.

The default corpus is the source of Python's own standard library, which is wherever this program runs.
A file is held out by a hash of its path relative to the corpus, so the split depends neither on the place of
the corpus nor on its other files. Where the files are too few or too uneven for that, the end of the largest is held
out instead.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hcmegatron.config.errors import ConfigError, one_line
from hcmegatron.config.schema import Data

if TYPE_CHECKING:
    from hcmegatron.data.blend import PreparedCorpus

# Not the library's own text: installed packages, builds for this machine, a program that may not be there.
_FOREIGN = {"site-packages", "dist-packages", "idlelib", "lib-dynload"}
_FOREIGN_PREFIXES = (".", "__pycache__", "config-", "_sysconfigdata")
# Named, these are read as what they are not: text. What would read them is not there yet.
_FORMATS = {
    "JSON": (".json", ".jsonl", ".ndjson"),
    "tables": (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xlsx"),
    "compressed files": (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".7z", ".lz4"),
}


@dataclass(frozen=True)
class Document:
    """Bytes start..stop of a file; each document ends with one end-of-document token."""

    path: Path
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """At most so many: bytes and the end of the document."""
        return self.stop - self.start + 1


@dataclass(frozen=True)
class Corpus:
    """The documents to train on and those held out, in an order that every machine agrees on."""

    name: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    share: float  # data.holdout, of the text's bytes
    fingerprint: str  # of every file's name, size and bytes, and the tokenizer

    def split(self) -> str:
        """What is held out, in words."""
        files = {document.path for document in (*self.train, *self.heldout)}
        whole = {document.path for document in self.heldout} - {document.path for document in self.train}
        of = f"{len(whole)} of {len(files)} files"
        if self.heldout and not whole:
            of = "the end of the largest file"
        return f"held out: {of}, {_bytes(self.heldout):,} bytes, {self.held_share:.3g} of the text"

    @property
    def held_share(self) -> float:
        """What is held out, of the text's bytes."""
        return _bytes(self.heldout) / _bytes((*self.train, *self.heldout))

    def warnings(self) -> list[str]:
        """One line where the split is not what data.holdout asks for."""
        if self.share == 0 or self.share / 2 <= self.held_share <= 2 * self.share:
            return []
        return [
            f"data.holdout = {self.share} of the text, but {self.split()}: files are held out whole, chosen by a hash "
            "of their path; name more files of a more even size, or set another data.holdout"
        ]

    def read(self, documents: tuple[Document, ...]) -> list[bytes]:
        """The documents' bytes. ConfigError where a file cannot be read, changed its size or is not text."""
        return [_read(document) for document in documents]


def find_corpus(data: Data) -> Corpus | PreparedCorpus:
    """The corpus of a configuration. ConfigError names the path that is missing, empty, unreadable or binary.

    Every file of text is opened and looked through, so that a later read in many ranks does not fail.
    """
    if data.paths or data.validation or data.test:
        from hcmegatron.data.blend import find_prepared

        if (prepared := find_prepared(data)) is not None:
            return prepared
    files = _listed(data) if data.paths else standard_library()
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
    if data.tokenizer != "byte":
        from hcmegatron.data.tokenizer_registry import build_tokenizer

        digest.update(build_tokenizer(data.tokenizer).fingerprint.encode())
    for relative, document in documents:
        raw = _read(document)
        if _is_json_lines(raw):
            raise ConfigError(
                f"data.paths: {document.path} holds JSON Lines, which would be trained on as they are written; name it "
                ".jsonl and make a data set of its texts with hcmegatron data prepare"
            )
        digest.update(f"{relative}:{len(raw)}:".encode(errors="surrogateescape") + raw)
    train, heldout = _split(documents, data.holdout)
    _long_enough("training", train, data)
    if data.holdout > 0:
        _long_enough("held-out", heldout, data)
    name = ", ".join(data.paths) if data.paths else "the standard library's own sources"
    return Corpus(one_line(name), tuple(train), tuple(heldout), data.holdout, digest.hexdigest()[:16])


def standard_library() -> list[tuple[str, Path]]:
    """(relative path, path) of the library's .py files, without what packages or this build added."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "abc.py").is_file():
        raise ConfigError(
            f"data.paths is empty, and this Python has no standard library sources in {root}; "
            "name text files or directories"
        )
    root = root.resolve()
    files = []
    for relative, path in walk(root, (".py",), lambda n: n in _FOREIGN or n.startswith(_FOREIGN_PREFIXES)):
        if path.resolve().is_relative_to(root):  # a link leads to the distribution's own configuration
            files.append((relative, path))
    return files


def _listed(data: Data) -> list[tuple[str, Path]]:
    """(relative path, path) of the files named, and of those in the directories named."""
    for suffix in data.suffixes:
        _refuse_formats(f"data.suffixes = {suffix}", suffix)
    files: list[tuple[str, Path]] = []
    for name in data.paths:
        for path in _expanded(name):
            try:
                files += _of_directory(path, name, data) if path.is_dir() else [_of_file(path, name)]
            except OSError as error:  # such as a name that is too long, to which is_dir has no answer
                raise ConfigError(
                    f"data.paths = {name}: {error.strerror}; name text files or directories"
                ) from None
    return files


def _expanded(name: str) -> list[Path]:
    """The path, or in order those that a pattern like *.txt stands for; what exists is no pattern."""
    if not glob.has_magic(name) or os.path.lexists(name):
        return [Path(name)]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise ConfigError(
            f"data.paths = {name}: nothing there has such a name; name text files or directories"
        )
    return [Path(path) for path in found]


def _of_directory(path: Path, name: str, data: Data) -> list[tuple[str, Path]]:
    inside = walk(path, tuple(data.suffixes), lambda n: n.startswith(".") or n == "__pycache__", links=True)
    if not inside:
        raise ConfigError(
            f"data.paths = {name}: the directory holds no file ending in {', '.join(data.suffixes)}; "
            "name another, or set data.suffixes"
        )
    for relative, file in inside:
        if not file.is_file():
            what = "is a link to nothing" if not file.exists() else "is not a regular file"
            raise ConfigError(f"data.paths = {name}: {relative} {what}; remove it, or name other files")
    return inside


def _of_file(path: Path, name: str) -> tuple[str, Path]:
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise ConfigError(f"data.paths = {name}: {path.absolute()} {what}; name text files or directories")
    _refuse_formats(f"data.paths = {name}", path.name)
    if path.stat().st_size == 0:
        raise ConfigError(f"data.paths = {name}: the file is empty; name files with text")
    return path.name, path


def _refuse_formats(setting: str, name: str) -> None:
    for format, suffixes in _FORMATS.items():
        if name.lower().endswith(suffixes):
            raise ConfigError(
                f"{setting}: {format} (.{name.rpartition('.')[2]}) would be trained on as it is written; "
                "make a data set of its texts with hcmegatron data prepare"
            )


def walk(
    root: Path, suffixes: tuple[str, ...], skip: Callable[[str], bool], links: bool = False
) -> list[tuple[str, Path]]:
    """(relative path with slashes, path) of what ends in `suffixes` under a directory, sorted.

    With `links`, directories that are symbolic links are entered too, after all others: each directory once, so that a
    link to one above it ends.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(f"data.paths: {error.filename} cannot be read: {error.strerror}") from None

    found: list[tuple[str, Path]] = []
    entered: set[str] = set()
    waiting = [root]
    while waiting:
        start = waiting.pop(0)
        for folder, subfolders, names in os.walk(start, onerror=refuse):
            if (real := os.path.realpath(folder)) in entered:
                subfolders.clear()
                continue
            entered.add(real)
            subfolders[:] = sorted(name for name in subfolders if not skip(name))
            if links:
                waiting += [path for name in subfolders if (path := Path(folder, name)).is_symlink()]
            found += [
                (path.relative_to(root).as_posix(), path)
                for name in names
                if name.endswith(suffixes)
                and not skip(name)
                and ((path := Path(folder, name)).is_file() or links)
            ]
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


def _is_json_lines(raw: bytes) -> bool:
    """Whether the first two lines are objects of JSON."""
    if not raw.startswith(b"{"):
        return False
    lines = raw.split(b"\n", 2)
    try:
        return len(lines) > 1 and all(isinstance(json.loads(line), dict) for line in lines[:2])
    except (ValueError, RecursionError):
        return False


def _split(documents: list[tuple[str, Document]], share: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents."""
    every = [document for _, document in documents]
    if share == 0:
        return every, []
    chosen = [_hash(name) < share for name, _ in documents]
    train, heldout = (
        [d for d, held in zip(every, chosen, strict=True) if held is which] for which in (False, True)
    )
    # More than half of the text, though less was asked for: one of few large files was chosen.
    if train and heldout and _bytes(heldout) <= max(0.5, 2 * share) * _bytes(every):
        return train, heldout
    largest = max(every, key=lambda document: document.stop)
    cut = largest.stop - max(1, round(share * _bytes(every)))
    if cut <= 0:
        return [d for d in every if d is not largest], [largest]
    head, tail = Document(largest.path, 0, cut), Document(largest.path, cut, largest.stop)
    return [head if d is largest else d for d in every], [tail]


def _bytes(documents: Sequence[Document]) -> int:
    return sum(document.stop - document.start for document in documents)


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
