"""Tokenizers by name, and what the data room makes of one that is not bytes."""

import math

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.ranges import BYTE_VOCABULARY
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.data.tokenizer_registry import TOKENIZERS, build_tokenizer
from tests.data.small_tokenizers import tokenizers_made


class PairTokenizer:
    """Two letters a token, written aa to dd; a last odd letter is a token of its own."""

    vocab_size = 21
    end_of_document = 20
    dtype = np.uint8
    fingerprint, files = "pairs", ()
    bytes_of = np.array([2] * 16 + [1] * 4 + [0])

    def encode(self, text):
        raw = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8) - ord("a")
        pairs = raw[: len(raw) // 2 * 2].reshape(-1, 2)
        last = raw[len(pairs) * 2 :] + 16
        return np.concatenate([pairs @ np.array([4, 1], np.uint8), last]).astype(self.dtype)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        pairs = ("abcd"[i // 4] + "abcd"[i % 4] if i < 16 else "abcd"[i - 16] for i in ids if i != 20)
        return "".join(pairs)


def test_the_smallest_vocabulary_is_the_configurations():
    """model.vocab_size takes none below it: those of bytes, and of byte-level BPE, have as many."""
    assert build_tokenizer("byte").vocab_size == BYTE_VOCABULARY


@pytest.fixture(scope="module")
def made_tokenizers(tmp_path_factory):
    """One for every line of TOKENIZERS, small."""
    return tokenizers_made(tmp_path_factory.mktemp("tokenizers"))


def test_every_tokenizer_is_held_to_what_is_asked_for(made_tokenizers):
    """One that is added fails here until it is among those made."""
    assert made_tokenizers.keys() == TOKENIZERS.keys()


@pytest.mark.parametrize("pattern", [*TOKENIZERS, "pairs"])
def test_what_every_tokenizer_keeps_to(pattern, made_tokenizers):
    tokenizer = PairTokenizer() if pattern == "pairs" else build_tokenizer(made_tokenizers[pattern])
    text = "abcdabcddcbaa"
    ids = tokenizer.encode(text)
    assert ids.dtype == tokenizer.dtype and np.iinfo(tokenizer.dtype).max >= tokenizer.vocab_size - 1
    assert np.array_equal(ids, tokenizer.encode(text.encode()))
    assert np.array_equal(ids, tokenizer.encode_batch(["a", text])[1]) and len(ids) <= len(text)
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size and tokenizer.end_of_document not in ids
    assert tokenizer.decode(np.append(ids, tokenizer.end_of_document)) == text
    assert len(tokenizer.bytes_of) == tokenizer.vocab_size
    assert tokenizer.bytes_of[ids].sum() == len(text) and tokenizer.bytes_of[tokenizer.end_of_document] == 0


@pytest.fixture
def text(tmp_path):
    for index in range(12):
        (tmp_path / f"{index}.txt").write_text(("abcd" * 9 + "dca"[: index % 3]) * (index + 2))
    return find_corpus(Data(paths=[str(tmp_path)], sequence_length=8, holdout=0.3))


def made(sequence_length=8):
    return Data(sequence_length=sequence_length), Training(global_batch=2, micro_batch=1)


def test_losses_are_by_the_byte_whatever_a_token_is(text):
    tokenizer = PairTokenizer()
    tokens = Text(text, tokenizer)
    for held, documents in ((tokens.training[0], text.train), (tokens.held_out[0].tokens, text.heldout)):
        letters = b"".join(text.read(documents)).decode()
        assert tokenizer.decode(held) == letters and (held == 20).sum() == len(documents)
        assert len(held) < len(letters)
    validation = Validation(tokens, *made())
    labels = np.concatenate([tokens.held_out[0].tokens[w * 8 + 1 : w * 8 + 9] for w in validation.windows])
    letters = len(tokenizer.decode(labels))
    assert validation.bytes == letters and letters > 1.5 * len(labels)
    assert validation.uniform == pytest.approx(len(labels) * math.log(21) / letters)
    assert validation.nats_per_byte(letters) == 1.0


def test_too_few_tokens_are_refused(text):
    """The corpus counts bytes; a tokenizer that makes fewer tokens of them may leave none to train on."""
    tokens = Text(text, PairTokenizer())
    long = len(tokens.held_out[0].tokens) + 1
    with pytest.raises(
        ConfigError, match=rf"the held-out text has {long - 1} tokens, fewer than .* = {long + 1}"
    ):
        Validation(tokens, *made(long))
    Validation(tokens, *made(long - 2))
    with pytest.raises(ConfigError, match=r"the training text has \d+ tokens"):
        Batches(tokens, *made(10**6))


def test_the_byte_tokenizer():
    assert build_tokenizer("byte").__class__ is ByteTokenizer and ByteTokenizer.bytes_of.sum() == 256
