"""What there is to train on and to be judged by, as sources of tokens: text held in memory, or prepared data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus, Document
from hcmegatron.data.tokenizer import Tokenizer


class Tokens(Protocol):
    """Documents end to end: a NumPy array, or mapped.MappedTokens."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class HeldOut:
    """Tokens to be judged by. byte_ratio: bytes of the text over what the tokenizer's bytes_of makes of its tokens: 1,
    except where the tokenizer changes a text. own_set: it is one of data.validation or data.test, and not the end of
    another."""

    name: str
    tokens: Tokens
    byte_ratio: float = 1.0
    own_set: bool = False


class Text:
    """A corpus as tokens.

    Attributes:
        training: of each source.
        names: of the same sources.
        weights: of the sources' samples, in whole numbers; None where they are read end to end.
        held_out: none where nothing is held out.
        test: of data.test.
        split: what is held out, in words.
    """

    def __init__(self, corpus: Corpus | PreparedCorpus, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.training: list[Tokens] = []
        self.names: list[str] = []
        self.weights: tuple[int, ...] | None = None
        self.held_out: list[HeldOut] = []
        self.test: list[HeldOut] = []
        if isinstance(corpus, PreparedCorpus):
            self._open(corpus)
        else:
            self.split = corpus.split()
            self.training, self.names = [_tokens(corpus, corpus.train, tokenizer)], [corpus.name]
            if corpus.heldout:
                held = _tokens(corpus, corpus.heldout, tokenizer)
                size = sum(document.stop - document.start for document in corpus.heldout)
                ratio = size / int(tokenizer.bytes_of[held].sum())
                self.held_out = [HeldOut(corpus.name, held, ratio)]

    def __len__(self) -> int:
        """Training tokens."""
        return sum(map(len, self.training))

    def _open(self, corpus: PreparedCorpus) -> None:
        from hcmegatron.data.mapped import open_set

        self.weights = corpus.weights
        own = bool(corpus.validation)
        shares = []
        for found in corpus.training:
            tokens, end = open_set(found, 0 if own else corpus.share)
            self.training.append(tokens)
            self.names.append(found.name)
            shares.append(f"{len(end) / found.manifest.tokens:.3g} of {found.name}")
            if len(end):
                self.held_out.append(HeldOut(found.name, end, found.manifest.byte_ratio))
        for sets, held in ((corpus.validation, self.held_out), (corpus.test, self.test)):
            for found in sets:
                held.append(HeldOut(found.name, open_set(found, 0)[0], found.manifest.byte_ratio, True))
        names = ", ".join(found.name for found in corpus.validation)
        self.split = f"held out: {names or 'the last ' + ', '.join(shares)}"


class Windows:
    """Sequences of S + 1 tokens, numbered through all sources: window w of a source is its tokens w*S .. w*S + S.

    Args:
        names: of the sources, with their setting; remedy: against too few tokens, beside a shorter sequence.

    Raises:
        ConfigError: a source has none: a tokenizer makes fewer tokens of a text than it has bytes.
    """

    def __init__(
        self, names: Sequence[str], sources: Sequence[Tokens], length: int, remedy: str = "give more text"
    ) -> None:
        for name, tokens in zip(names, sources, strict=True):
            if len(tokens) <= length:
                raise ConfigError(
                    f"{name} has {len(tokens)} tokens, fewer than data.sequence_length + 1 = {length + 1}; {remedy} or "
                    "a shorter sequence"
                )
        self.sources, self.length = list(sources), length
        self.mapped = not any(isinstance(tokens, np.ndarray) for tokens in sources)
        self.sizes = [(len(tokens) - 1) // length for tokens in sources]
        self.begins = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __getitem__(self, window: int) -> np.ndarray:
        """Its tokens [S + 1]."""
        tokens, begin = self._place(window)
        return tokens[begin : begin + self.length + 1]

    def ahead(self, window: int) -> None:
        """This window, of mapped tokens, will be read soon."""
        tokens, begin = self._place(window)
        tokens.ahead(begin, begin + self.length + 1)

    def _place(self, window: int) -> tuple[Tokens, int]:
        source = int(np.searchsorted(self.begins, window, "right")) - 1
        return self.sources[source], (window - int(self.begins[source])) * self.length


def _tokens(corpus: Corpus, documents: tuple[Document, ...], tokenizer: Tokenizer) -> np.ndarray:
    """All documents, each followed by its end."""
    found = []
    end = np.array([tokenizer.end_of_document], tokenizer.dtype)
    for document, raw in zip(documents, corpus.read(documents), strict=True):
        try:
            ids = tokenizer.encode(raw)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"data.paths: {document.path} is not UTF-8 at byte {error.start}, and this data.tokenizer has no "
                "tokens for single bytes; convert it, or use a byte-level tokenizer"
            ) from None
        found += [ids, end]
    return np.concatenate(found)
