"""Hugging Face's tokenizer.json: read, and a byte-level BPE trained. Needs the package tokenizers."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.tokenizer import fingerprint, id_dtype, missing

try:
    import tokenizers
except ModuleNotFoundError:  # said where one is asked for
    tokenizers = None

END = "<|endoftext|>"  # of a document, in those trained here
# What closes a document where no tokenizer_config.json beside the file says so.
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "<|im_end|>", "[SEP]")
# Between two lines, neither of which has white space there: every pre-tokenizer of byte-level BPE divides here, so a
# text encoded in stretches has the ids of the whole. Long texts cost the library more than their length.
_BETWEEN_LINES = re.compile(r"(?<=\S\n)(?=\S)")
_STRETCH = 1 << 14  # characters


class HuggingFace:
    """See Tokenizer. Special tokens that a text spells out are encoded as its letters."""

    def __init__(self, path: Path) -> None:
        if tokenizers is None:
            raise missing(str(path), "tokenizers")
        beside = path.with_name("tokenizer_config.json")
        self.files = (path, beside) if beside.is_file() else (path,)
        try:
            contents = [file.read_bytes() for file in self.files]
            self.library = tokenizers.Tokenizer.from_str(contents[0].decode())
            written = json.loads(contents[0])
            named = json.loads(contents[1]).get("eos_token") if beside.is_file() else None
        except OSError as error:
            raise ConfigError(f"data.tokenizer = {path}: {error.filename}: {error.strerror}") from None
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"data.tokenizer = {path}: not a tokenizer.json of Hugging Face's tokenizers ({error}); name "
                "another file"
            ) from None
        self.library.encode_special_tokens = True
        self.library.no_padding()
        self.library.no_truncation()
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_document = _end(path, vocabulary, named)
        self.fingerprint = fingerprint(contents[0], str(self.end_of_document).encode())
        self.dtype = id_dtype(self.vocab_size)
        parts = [*_parts(written.get("pre_tokenizer")), *_parts(written.get("decoder"))]
        levels = [part for part in parts if part["type"] == "ByteLevel"]
        self.byte_level = bool(levels)
        # a prefix that is added to every text would be added to every stretch
        self._stretches = self.byte_level and not written.get("normalizer") and not _prefixed(written)
        self.bytes_of = np.zeros(self.vocab_size, np.int64)
        added = {token["id"]: token for token in written["added_tokens"]}
        for token, index in vocabulary.items():
            if index in added:
                self.bytes_of[index] = 0 if added[index]["special"] else len(added[index]["content"].encode())
            else:
                self.bytes_of[index] = len(token) if self.byte_level else _bytes_of_piece(token)
        self.bytes_of[self.end_of_document] = 0

    def encode(self, text: str | bytes) -> np.ndarray:
        """See Tokenizer."""
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                if not self.byte_level:
                    raise
                return self._with_stray_bytes(text)
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Tokenizer."""
        stretches = [_cut(text) if self._stretches else [text] for text in texts]
        flat = [stretch for of_text in stretches for stretch in of_text]
        encoded = iter(self.library.encode_batch_fast(flat, add_special_tokens=False))
        return [
            np.concatenate([np.array(next(encoded).ids, self.dtype) for _ in of_text])
            for of_text in stretches
        ]

    def decode(self, ids: np.ndarray) -> str:
        """See Tokenizer."""
        kept = [int(index) for index in ids if index != self.end_of_document]
        return self.library.decode(kept, skip_special_tokens=False)

    def _with_stray_bytes(self, raw: bytes) -> np.ndarray:
        """Bytes that are no UTF-8 as the ids of single bytes, which a byte-level vocabulary has."""
        alphabet = _alphabet()
        found = []
        for part in re.split("([\udc80-\udcff]+)", raw.decode(errors="surrogateescape")):
            if part[:1] >= "\udc80" and part[:1] <= "\udcff":
                ids = [self.library.token_to_id(alphabet[ord(c) - 0xDC00]) for c in part]
                found.append(np.array(ids, self.dtype))
            elif part:
                found.append(self.encode(part))
        return np.concatenate(found)


def train_bpe(texts: Iterable[str], vocab_size: int, out: Path) -> int:
    """A byte-level BPE of these texts, written as tokenizer.json.

    Returns:
        how many ids it has: fewer than vocab_size where the texts give no more.

    Raises:
        ConfigError: tokenizers is not installed, the vocabulary is smaller than the bytes and the end of a document, or
            `out` cannot be written.
    """
    if tokenizers is None:
        raise missing("byte-level BPE", "tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise ConfigError(
            f"--vocab {vocab_size}: a byte-level vocabulary has {len(alphabet)} bytes and the end of a document; "
            f"give at least {len(alphabet) + 1}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    with _whole(out) as stream:  # opened before the training, which is long
        tokenizer.train_from_iterator(texts, trainer)
        stream.write(tokenizer.to_str(pretty=False))
    return tokenizer.get_vocab_size()


@contextmanager
def _whole(out: Path) -> Iterator[IO[str]]:
    """A file to write, which is there as `out` when the context is left without an exception, and else is not."""
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial = out.with_name(f".{out.name}.partial")
        stream = partial.open("w", encoding="utf-8")
        try:
            with stream:
                yield stream
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name another file") from None


def _end(path: Path, vocabulary: dict[str, int], named: Any) -> int:
    """The id that ends a document: tokenizer_config.json's eos_token, or one of the usual names."""
    named = named.get("content") if isinstance(named, dict) else named
    if named is not None and named not in vocabulary:
        raise ConfigError(
            f"data.tokenizer = {path}: eos_token = {named} of tokenizer_config.json is not in the vocabulary; "
            "correct it"
        )
    for name in [named] if named else _ENDS:
        if name in vocabulary:
            return vocabulary[name]
    raise ConfigError(
        f"data.tokenizer = {path}: it has no token that ends a document ({', '.join(_ENDS)}); name it as eos_token in "
        "a tokenizer_config.json beside it"
    )


def _parts(component: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder as a list: those of a sequence, itself, or nothing."""
    if not component:
        return []
    return component.get("pretokenizers") or component.get("decoders") or [component]


def _prefixed(written: dict[str, Any]) -> bool:
    return any(part.get("add_prefix_space") for part in _parts(written.get("pre_tokenizer")))


def _cut(text: str) -> list[str]:
    """The text in stretches that begin with a line."""
    if len(text) <= 2 * _STRETCH:
        return [text]
    stretches, begin = [], 0
    while (found := _BETWEEN_LINES.search(text, begin + _STRETCH)) is not None:
        stretches.append(text[begin : found.end()])
        begin = found.end()
    return [*stretches, text[begin:]]


def _alphabet() -> dict[int, str]:
    """The letter that byte-level BPE (GPT-2) writes for each byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + at) for at, byte in enumerate(moved)}


def _bytes_of_piece(piece: str) -> int:
    """Of a vocabulary that writes spaces as U+2581, continued words with ## and bytes as <0x0A>."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
        return 1
    return len(piece.removeprefix("##").replace("▁", " ").encode())
