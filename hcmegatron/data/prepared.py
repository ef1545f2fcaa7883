"""A prepared data set: a directory with Megatron's indexed tokens, their tokenizer, and a manifest. No torch.

tokens.bin, tokens.idx    as megatron.core.datasets.indexed_dataset reads them: documents, each with its end
manifest.json             what it is, with checksums; written last, so that what has it is whole
tokenizer.json            and whatever else the tokenizer is made of
parts/, plan.json         only while it is being prepared
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hcmegatron.config.errors import ConfigError

FORMAT = 1
MANIFEST, PLAN, TOKENS, PARTS = "manifest.json", "plan.json", "tokens", "parts"


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set is.

    Attributes:
        tokenizer: as data.tokenizer names it: `byte`, tiktoken:NAME, or a file in the directory.
        fingerprint: of the tokenizer.
        vocab_size, end_of_document: the tokenizer's.
        documents, tokens: how many; tokens with the ends of documents.
        bytes: of the documents' text in UTF-8.
        token_bytes: what the tokenizer's bytes_of makes of the tokens: other than `bytes` where it changes the text.
        shortest, longest: documents, in tokens without their ends.
        rejected: how many lines, rows or files were no documents; duplicates: documents that were dropped.
        files: name -> [bytes, CRC-32], those of the tokenizer among them.
    """

    tokenizer: str
    fingerprint: str
    vocab_size: int
    end_of_document: int
    documents: int
    tokens: int
    bytes: int
    token_bytes: int
    shortest: int
    longest: int
    rejected: int
    duplicates: int
    files: dict[str, list[int]]

    @property
    def byte_ratio(self) -> float:
        """Bytes of the text over what the tokenizer's bytes_of makes of its tokens."""
        return self.bytes / self.token_bytes

    @property
    def digest(self) -> str:
        """Of all that the manifest says."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def write(self, directory: Path) -> None:
        """On the disk when this returns: whole, or not at all."""
        write_json(directory / MANIFEST, {"format": FORMAT, **asdict(self), "digest": self.digest})


def name_beside(file: Path) -> str:
    """The name in a data set of a file of its tokenizer."""
    return file.name if file.name == "tokenizer_config.json" else f"tokenizer{file.suffix}"


def is_prepared(path: Path) -> bool:
    """Whether a path is a prepared data set, or one that is not finished."""
    return any(
        os.path.isfile(path / name) for name in (MANIFEST, PLAN)
    )  # of any name, too long ones among them


def read_manifest(path: Path) -> Manifest:
    """The manifest of a prepared data set, whose files have the sizes that it says.

    Raises:
        ConfigError: it is not finished, damaged, of another version, or a file of it is missing or cut.
    """
    if not (path / MANIFEST).is_file():
        if (path / PLAN).is_file():
            raise ConfigError(
                f"{path}: preparing it was interrupted; run the same hcmegatron data prepare again, and it goes on"
            )
        raise ConfigError(f"{path}: no prepared data set ({MANIFEST} is not there); name another directory")
    try:
        written: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        if written.pop("format") != FORMAT:
            raise ConfigError(
                f"{path}: {MANIFEST} is of another version of hcmegatron; prepare the data again"
            )
        digest = written.pop("digest")
        manifest = Manifest(**written)
    except OSError as error:
        raise ConfigError(f"{path / MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: {MANIFEST} is damaged ({error}); prepare the data again") from None
    if manifest.digest != digest:
        raise ConfigError(f"{path}: {MANIFEST} was changed after it was written; prepare the data again")
    for name, (size, _) in manifest.files.items():
        there = (path / name).stat().st_size if (path / name).is_file() else None
        if there != size:
            what = "is missing" if there is None else f"has {there:,} bytes, and {MANIFEST} says {size:,}"
            raise ConfigError(f"{path}: {name} {what}; copy or prepare the data again")
    return manifest


def write_json(path: Path, content: dict[str, Any]) -> None:
    """At once or not at all; on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
