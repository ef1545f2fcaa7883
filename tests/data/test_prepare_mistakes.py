"""What `hcmegatron data prepare` says of input that it cannot use: one line, or one for every rejected document."""

import gzip
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hcmegatron.cli import main
from hcmegatron.data.prepare import Preparation
from tests.data.prepared import data_set, lines, written
from tests.data.small_tokenizers import byte_level

REJECTED = {
    b'{"text": "a"': "no JSON: ",
    b"[1, 2]": "no JSON object",
    b'{"other": "a"}': "no field text",
    b'{"text": 3}': "field text is no text",
    b'{"text": null}': "field text is no text",
    b'{"text": "  \\n"}': "empty",
    b'{"text": "a\\u0000"}': "binary: it holds a zero byte",
    b'{"text": "\xff"}': "not UTF-8: byte 0xff at 10",
    b'{"text": "\\ud800"}': "half of a surrogate pair",
    b"[" * 100_000: "no JSON: ",
}


def test_what_is_no_document_is_listed_with_its_line(tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"".join(b'{"text": "good"}\n\n' + line + b"\n" for line in REJECTED))
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    for number, reason in enumerate(REJECTED.values()):
        assert said[number].startswith(f"rejected: mixed.jsonl:{3 * number + 3}: {reason}")
    assert said[len(REJECTED)].startswith(
        "10 documents, 50 tokens with their ends, 40 bytes: 1.000 bytes a token"
    )
    (tmp_path / "latin.txt").write_bytes(b"first\nna\xefve\n")
    (tmp_path / "good.txt").write_text("good")
    arguments = ["data", "prepare", str(tmp_path / "latin.txt"), str(tmp_path / "good.txt")]
    assert main([*arguments, "--out", str(tmp_path / "texts")]) == 0
    assert capsys.readouterr().out.startswith("rejected: latin.txt:2: not UTF-8: byte 0xef at 8\n1 documents")


def _nothing(folder: Path) -> list[str]:
    return [str(lines(folder / "x.jsonl", ["a"], field="other"))]


MISTAKES = [
    (lambda d: [str(d / "nowhere")], "nowhere does not exist; name files or directories"),
    (lambda d: ["/dev/null"], "/dev/null is no regular file"),
    (
        lambda d: [str(written(d / "x.png"))],
        "x.png: what .png holds is not known; text, JSON Lines and Parquet",
    ),
    (lambda d: [str(written(d / "in" / "x.png").parent)], "in: none of its 1 files is text, JSON Lines or"),
    (lambda d: [str(written(d / "in" / ".x").parent)], "in: none of its 0 files is text"),
    (
        _nothing,
        "no document in the input, of 1 that were rejected: x.jsonl:1: no field text; name other files, or ",
    ),
    (lambda d: [str(written(d / "x.jsonl.gz"))], "x.jsonl.gz cannot be read: Not a gzipped file"),
    (
        lambda d: [_cut(d / "x.jsonl.gz", gzip.compress)],
        "x.jsonl.gz cannot be read: Compressed file ended before",
    ),
    (lambda d: [str(written(d / "x.txt.zst"))], "x.txt.zst cannot be read: ZSTD decompress failed"),
    (lambda d: [_cut(d / "x.txt.zst", _zstd)], "x.txt.zst cannot be read: Truncated compressed stream"),
    (lambda d: [str(written(d / "x.parquet"))], "x.parquet cannot be read: Parquet "),
    (lambda d: [_table(d)], "x.parquet: no column text among a, b; name one of them with --field"),
    (
        lambda d: [_good(d), "--tokenizer=nowhere.json"],
        "data.tokenizer = nowhere.json: there is no such file",
    ),
    (
        lambda d: [_good(d), "--tokenizer=bytes"],
        "data.tokenizer = bytes: no known tokenizer; name one of byte, tik",
    ),
    (
        lambda d: [_good(d), f"--tokenizer={written(d / 't.json')}"],
        "t.json: not a tokenizer.json of Hugging Face's",
    ),
    (lambda d: [_good(d), f"--tokenizer={written(d / 't.model')}"], "t.model: not a model of SentencePiece"),
    (
        lambda d: [_good(d), "--tokenizer=tiktoken:none"],
        "data.tokenizer = tiktoken:none: tiktoken cannot load it",
    ),
    (
        lambda d: [_good(d), f"--tokenizer={_endless(d)}"],
        "endless.json: it has no token that ends a document",
    ),
    (lambda d: [_good(d), "--workers=0"], "--workers 0: at least 1"),
    (lambda d: [_good(d), "--worker=2"], "unrecognized arguments: --worker=2"),
    (
        lambda d: [_good(d), "--field=text", "b.txt"],
        "unrecognized arguments: b.txt; see hcmegatron data prepare --help",
    ),
    (lambda d: [_good(d), f"--out={written(d / 'file')}"], "file cannot be written: File exists"),
    (lambda d: [_good(d), f"--out={written(d / 'full' / 'x').parent}"], "full: something else is there"),
    (
        lambda d: [_good(d), f"--out={data_set(d / 'done', ['a'])}"],
        "done: a prepared data set is there already",
    ),
    (lambda d: [_good(d), f"--out={_begun(d)}"], "begun: begun with another input (field differ)"),
    (lambda d: [_good(d), "--out=/proc/set"], "/proc/set cannot be written: "),
]


@pytest.mark.parametrize(("make", "words"), MISTAKES)
def test_mistakes_are_one_line(make, words, tmp_path, capsys):
    arguments = make(tmp_path)
    if not any(argument.startswith("--out") for argument in arguments):
        arguments.append(f"--out={tmp_path / 'set'}")
    assert main(["data", "prepare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("hcmegatron: error: ") and printed.err.count("\n") == 1
    assert words in printed.err


def _good(folder: Path) -> str:
    return str(written(folder / "good.txt"))


def _cut(path: Path, compress) -> str:
    path.write_bytes(compress(os.urandom(5000))[:-100])
    return str(path)


def _zstd(raw: bytes) -> bytes:
    return pyarrow.compress(raw, "zstd", asbytes=True)


def _table(folder: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "b": [1]}), folder / "x.parquet")
    return str(folder / "x.parquet")


def _endless(folder: Path) -> Path:
    path = byte_level(folder)
    path.with_name("endless.json").write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    return path.with_name("endless.json")


def _begun(folder: Path) -> Path:
    Preparation([_good(folder)], "byte", folder / "begun", text_field="other")
    return folder / "begun"
