"""Text as tokens. To add a tokenizer: a class with what `Tokenizer` asks for, its name in TOKENIZERS and in
config.schema.Data.tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from hcmegatron.config.schema import Data


class Tokenizer(Protocol):
    """What the data room asks of a tokenizer.

    Attributes:
        vocab_size: ids are 0 .. vocab_size - 1, before the model pads them.
        end_of_document: the id that closes every document; it stands for no byte of text.
        dtype: unsigned, in which a corpus is held.
        bytes_of: [vocab_size], how many bytes of text each id stands for: losses are compared by the byte.
    """

    vocab_size: int
    end_of_document: int
    dtype: type[np.unsignedinteger]
    bytes_of: np.ndarray

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (as UTF-8) or bytes to ids [length], without an end of document. At most one id a byte."""

    def decode(self, ids: np.ndarray) -> str:
        """Ids to text; ends of documents are dropped, bytes that are no UTF-8 become U+FFFD."""


class ByteTokenizer:
    """Bytes as tokens: ids 0..255 are the bytes, 256 ends a document.

    Every byte string has exactly one encoding, so a loss per token is a loss per byte.
    """

    end_of_document = 256
    vocab_size = 257
    dtype = np.uint16
    bytes_of = np.array([1] * 256 + [0])

    def encode(self, text: str | bytes) -> np.ndarray:
        """See Tokenizer."""
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """See Tokenizer."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")


TOKENIZERS: dict[str, Callable[[Data], Tokenizer]] = {"byte": lambda data: ByteTokenizer()}


def build_tokenizer(data: Data) -> Tokenizer:
    """The tokenizer that data.tokenizer names."""
    return TOKENIZERS[data.tokenizer](data)
