"""SentencePiece's and tiktoken's tokenizers, where those packages are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.tokenizer import fingerprint, id_dtype, missing


class SentencePiece:
    """See Tokenizer. A document ends with the model's </s>."""

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError:
            raise missing(str(path), "sentencepiece") from None
        self.files = (path,)
        try:
            content = path.read_bytes()
            self.library = SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"data.tokenizer = {path}: not a model of SentencePiece ({error}); name another file"
            ) from None
        model = self.library
        self.fingerprint = fingerprint(content)
        self.vocab_size, self.end_of_document = model.get_piece_size(), model.eos_id()
        if self.end_of_document < 0:
            raise ConfigError(
                f"data.tokenizer = {path}: the model has no </s>, which ends documents; train it with an eos_id"
            )
        self.dtype = id_dtype(self.vocab_size)
        self.bytes_of = np.array([_bytes_of(model, index) for index in range(self.vocab_size)])

    def encode(self, text: str | bytes) -> np.ndarray:
        """See Tokenizer."""
        return self.encode_batch([text.decode() if isinstance(text, bytes) else text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Tokenizer."""
        return [np.array(ids, self.dtype) for ids in self.library.encode(list(texts), num_threads=1)]

    def decode(self, ids: np.ndarray) -> str:
        """See Tokenizer."""
        return self.library.decode([int(index) for index in ids if index != self.end_of_document])


class TikToken:
    """See Tokenizer. A document ends with <|endoftext|>."""

    def __init__(self, name: str) -> None:
        try:
            import tiktoken
        except ModuleNotFoundError:
            raise missing(name, "tiktoken") from None
        try:
            self.library = tiktoken.get_encoding(name.removeprefix("tiktoken:"))
            self.vocab_size, self.end_of_document = self.library.n_vocab, self.library.eot_token
        except Exception as error:  # an unknown name, or what a download came to
            raise ConfigError(
                f"data.tokenizer = {name}: tiktoken cannot load it ({type(error).__name__}: {error}); name "
                "one of its encodings, with its file in TIKTOKEN_CACHE_DIR where there is no network"
            ) from None
        self.files = ()
        self.dtype = id_dtype(self.vocab_size)
        self.bytes_of = np.zeros(self.vocab_size, np.int64)
        ranks = self.library._mergeable_ranks
        for token, index in ranks.items():
            self.bytes_of[index] = len(token)
        written = (token + index.to_bytes(4) for token, index in sorted(ranks.items()))
        self.fingerprint = fingerprint(self.library._pat_str.encode(), *written)

    def encode(self, text: str | bytes) -> np.ndarray:
        """See Tokenizer."""
        return self.encode_batch([text.decode() if isinstance(text, bytes) else text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Tokenizer."""
        return [np.array(self.library.encode_ordinary(text), self.dtype) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """See Tokenizer."""
        return self.library.decode([int(index) for index in ids if index != self.end_of_document])


def _bytes_of(model: object, index: int) -> int:
    if model.is_control(index) or model.is_unknown(index):
        return 0
    return 1 if model.is_byte(index) else len(model.id_to_piece(index).replace("▁", " ").encode())
