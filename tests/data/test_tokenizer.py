"""Tokenizers by name, and what the data room makes of one that is not bytes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.ranges import BYTE_VOCABULARY
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.data.huggingface import _alphabet, _cut
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.data.tokenizer_registry import TOKENIZERS, build_tokenizer
from tests.data.small_tokenizers import byte_level, sentence_piece, tokenizers_made


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
        ConfigError, match=rf"the held-out text of .* has {long - 1} tokens, fewer than .* = {long + 1}"
    ):
        Validation(tokens, *made(long))
    Validation(tokens, *made(long - 2))
    with pytest.raises(ConfigError, match=r"the training text of .* has \d+ tokens"):
        Batches(tokens, *made(10**6))


def test_the_byte_tokenizer():
    assert build_tokenizer("byte").__class__ is ByteTokenizer and ByteTokenizer.bytes_of.sum() == 256


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Of this file's neighbours, so that it has tokens of several words' white space."""
    sources = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return build_tokenizer(str(byte_level(tmp_path_factory.mktemp("bpe"), 600, sources))), sources


def test_a_long_text_in_stretches_has_the_ids_of_the_whole(bpe):
    tokenizer, sources = bpe
    text = "".join(sources) + " \n\n  end \n" * 2000 + "a\nb\r\n\u2028c\n" * 3000
    assert len(_cut(text)) > 5 and "".join(_cut(text)) == text
    assert tokenizer.encode(text).tolist() == tokenizer.library.encode(text).ids


def test_special_tokens_that_a_text_spells_are_its_letters(bpe):
    tokenizer, _ = bpe
    ids = tokenizer.encode("a <|endoftext|> b")
    assert tokenizer.end_of_document not in ids and tokenizer.decode(ids) == "a <|endoftext|> b"
    assert tokenizer.bytes_of[ids].sum() == len("a <|endoftext|> b")


def test_bytes_that_are_no_text_are_kept(bpe):
    tokenizer, _ = bpe
    raw = b"caf\xe9 \xff\xfe" + "naïve".encode() + b"\x80"
    ids = tokenizer.encode(raw)
    assert tokenizer.bytes_of[ids].sum() == len(raw)
    assert tokenizer.decode(ids) == raw.decode(errors="replace")
    letters = "".join(tokenizer.library.id_to_token(index) for index in ids)
    of = {letter: byte for byte, letter in _alphabet().items()}
    assert bytes(of[letter] for letter in letters) == raw


def test_text_that_is_not_utf8_is_refused_where_there_are_no_ids_for_bytes(made_tokenizers, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve " * 99)
    found = find_corpus(Data(paths=[str(tmp_path)], sequence_length=8))
    with pytest.raises(
        ConfigError, match=r"latin\.txt is not UTF-8 at byte 2, and this data\.tokenizer has no tokens"
    ):
        Text(found, build_tokenizer(made_tokenizers["*.model"]))


def test_a_text_may_have_more_tokens_than_bytes(tmp_path):
    """SentencePiece writes a space before a text, if not told otherwise."""
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text("z")
    made = build_tokenizer(str(sentence_piece(tmp_path, add_dummy_prefix=True)))
    found = find_corpus(Data(paths=[str(tmp_path)], sequence_length=8, holdout=0.0))
    assert len(Text(found, made)) == 20 * (len(made.encode("z")) + 1) > 20 * 2


def test_what_ends_a_document_is_what_the_files_say(tmp_path):
    path = byte_level(tmp_path)
    usual = build_tokenizer(str(path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"eos_token": {"content": "a"}}')
    named = build_tokenizer(str(path))
    assert named.end_of_document == named.library.token_to_id("a") != usual.end_of_document
    assert named.fingerprint != usual.fingerprint and named.files == (path, config)
    config.write_text('{"eos_token": "none such"}')
    with pytest.raises(
        ConfigError, match=r"eos_token = none such of tokenizer_config\.json is not in the vocabulary"
    ):
        build_tokenizer(str(path))


def test_the_corpus_s_fingerprint_is_of_the_tokenizer_too(text, tmp_path):
    data = Data(paths=[str(text.train[0].path)], sequence_length=8, holdout=0.0)
    there = [
        find_corpus(replace(data, tokenizer=name)).fingerprint for name in ("byte", str(byte_level(tmp_path)))
    ]
    assert there[0] != there[1]
