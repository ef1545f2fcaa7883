"""Tokenizers that cannot be used, or made by data tokenizer, are one line that names them."""

import gzip
import json
from pathlib import Path

import pytest

from tests.data.mistakes import good, made, prepare, require_one_line
from tests.data.small_tokenizers import byte_level


def tokenizer(*words: object) -> list[str]:
    return ["data", "tokenizer", *map(str, words)]


def odd_tokenizer(folder: Path, **beside: object) -> str:
    path = byte_level(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(beside) if beside else "{")
    return f"--tokenizer={path}"


MISTAKES = {
    "a tokenizer that is a directory": (
        lambda d: prepare(good(d), f"--tokenizer={made(d / 't.json' / 'x').parent}"),
        "t.json: there is no such file; name another, or byte",
    ),
    "an empty tokenizer": (
        lambda d: prepare(good(d), f"--tokenizer={made(d / 't.json', b'')}"),
        "t.json: not a tokenizer.json of Hugging Face's tokenizers (",
    ),
    "another JSON": (
        lambda d: prepare(good(d), f"--tokenizer={made(d / 't.json', b'[]')}"),
        "t.json: not a tokenizer.json of Hugging Face's tokenizers (",
    ),
    "an end that is none of its tokens": (
        lambda d: prepare(good(d), odd_tokenizer(d, eos_token="<none>")),
        "eos_token = <none> of tokenizer_config.json is not in the vocabulary",
    ),
    "a damaged file beside it": (
        lambda d: prepare(good(d), odd_tokenizer(d)),
        "not a tokenizer.json of Hugging Face's tokenizers (Expecting property name",
    ),
    "a vocabulary smaller than bytes": (
        lambda d: tokenizer(good(d), "--vocab=256", f"--out={d / 't.json'}"),
        "--vocab 256: a byte-level vocabulary has 256 bytes and the end of a document; give at least 257",
    ),
    "a vocabulary that is no number": (
        lambda d: tokenizer(good(d), "--vocab=many", f"--out={d / 't.json'}"),
        "argument --vocab: invalid int value: 'many'",
    ),
    "a vocabulary without text": (
        lambda d: tokenizer(made(d / "x.txt", b""), "--vocab=300", f"--out={d / 't.json'}"),
        "no document in the input, of 1 that were rejected: x.txt:1: empty",
    ),
    "a vocabulary of a cut file": (
        lambda d: tokenizer(
            made(d / "x.txt.gz", gzip.compress(b"text")[:-3]), "--vocab=300", f"--out={d / 't.json'}"
        ),
        "x.txt.gz cannot be read: Compressed file ended before",
    ),
    "a vocabulary nowhere": (
        lambda d: tokenizer(good(d), "--vocab=300", f"--out={d / 'nowhere' / 't.json'}"),
        "t.json: the directory is not there; make it, or name another file",
    ),
    "a vocabulary onto a directory": (
        lambda d: tokenizer(good(d), "--vocab=300", f"--out={made(d / 'in' / 'x').parent}"),
        "in: Is a directory; name another file",
    ),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(mistake, tmp_path, capsys, monkeypatch):
    require_one_line(*MISTAKES[mistake], tmp_path, capsys, monkeypatch)
