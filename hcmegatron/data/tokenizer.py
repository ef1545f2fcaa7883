"""Text as tokens: what is asked of a tokenizer, and bytes as tokens. To add another: a class with what `Tokenizer` asks
for, and its line in tokenizer_registry.TOKENIZERS."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hcmegatron.config.errors import ConfigError


class Tokenizer(Protocol):
    """What the data room asks of a tokenizer.

    Attributes:
        fingerprint: of all that its ids depend on; data sets and checkpoints hold it.
        files: what it is made of, kept beside the data sets that it made. The first is what data.tokenizer names.
        vocab_size: ids are 0 .. vocab_size - 1, before the model pads them.
        end_of_document: the id that closes every document; it stands for no byte of text.
        dtype: in which ids are held, in memory and in files.
        bytes_of: [vocab_size], how many bytes of text each id stands for: losses are compared by the byte.
    """

    fingerprint: str
    files: tuple[Path, ...]
    vocab_size: int
    end_of_document: int
    dtype: type[np.integer]
    bytes_of: np.ndarray

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (as UTF-8) or bytes to ids [length], without an end of document.

        Raises:
            UnicodeDecodeError: bytes that are no UTF-8, where this tokenizer has no ids for bytes.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each, at the library's best speed."""

    def decode(self, ids: np.ndarray) -> str:
        """Ids to text; ends of documents are dropped, bytes that are no UTF-8 become U+FFFD."""


class ByteTokenizer:
    """Bytes as tokens: ids 0..255 are the bytes, 256 ends a document.

    Every byte string has exactly one encoding, so a loss per token is a loss per byte.
    """

    fingerprint = "byte"
    files = ()
    end_of_document = 256
    vocab_size = 257
    dtype = np.uint16
    bytes_of = np.array([1] * 256 + [0])

    def encode(self, text: str | bytes) -> np.ndarray:
        """See Tokenizer."""
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(self.dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Tokenizer."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """See Tokenizer."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")


def id_dtype(vocab_size: int) -> type[np.integer]:
    """As Megatron's data sets hold so many ids (DType.optimal_dtype, which needs torch)."""
    return np.uint16 if vocab_size < 65500 else np.int32


def fingerprint(*contents: bytes) -> str:
    """A tokenizer's, of what it is made of."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def missing(name: str, package: str) -> ConfigError:
    """The error of a tokenizer whose library is not installed."""
    return ConfigError(
        f"data.tokenizer = {name}: the package {package} is not installed here; pip install {package}, or use "
        "data.tokenizer=byte"
    )
