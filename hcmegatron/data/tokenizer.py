"""Bytes as tokens: ids 0..255 are the bytes, 256 ends a document."""

from __future__ import annotations

import numpy as np


class ByteTokenizer:
    """Every byte string has exactly one encoding, so a loss per token is a loss per byte."""

    end_of_document = 256
    vocab_size = 257  # before the model pads it
    dtype = np.uint16

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (as UTF-8) or bytes to ids [length], without an end of document."""
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """Ids to text; ends of documents are dropped, bytes that are no UTF-8 become U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")
