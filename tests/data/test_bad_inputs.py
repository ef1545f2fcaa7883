"""What cannot be used is one line that names it, status 2, and nothing lost or taken for whole: data prepare,
tokenizer, show and check. More of prepare is in test_prepare_mistakes.py, of blends in test_prepared_training.py."""

import fcntl
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from hcmegatron.cli import main
from hcmegatron.data import documents
from hcmegatron.data.prepare import Preparation
from tests.data.prepared import data_set, written
from tests.data.small_tokenizers import byte_level


def made(path: Path, content: bytes = b"some text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def linked(path: Path, target: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def prepare(*words: object) -> list[str]:
    """Of these paths and options, into `set` beside the first path where no other place is named."""
    out = (
        []
        if any(str(word).startswith("--out") for word in words)
        else [f"--out={Path(words[0]).parent / 'set'}"]
    )
    return ["data", "prepare", "--workers=1", *map(str, words), *out]


def tokenizer(*words: object) -> list[str]:
    return ["data", "tokenizer", *map(str, words)]


def good(folder: Path) -> Path:
    return made(folder / "good.txt")


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def begun(folder: Path, plan: bytes | None = None) -> str:
    """A preparation that was interrupted at its very beginning."""
    Preparation([str(good(folder))], "byte", folder / "begun")
    if plan is not None:
        (folder / "begun/plan.json").write_bytes(plan)
    return f"--out={folder / 'begun'}"


def prepared(folder: Path, file: str = "", content: bytes | None = None, **manifest: object) -> str:
    """A data set of which a file has other content (None: is gone), or the manifest other entries."""
    path = data_set(folder / "whole", ["a text " * 9, "another text"])
    if file and content is None:
        (path / file).unlink()
    elif file:
        (path / file).write_bytes(content)
    if manifest:
        told = json.loads((path / "manifest.json").read_text()) | manifest
        kept = {key: value for key, value in told.items() if value is not None}
        (path / "manifest.json").write_text(json.dumps(kept))
    return str(path)


def damaged_index(folder: Path) -> str:
    """As long as it was, and no index."""
    path = prepared(folder)
    index = Path(path, "tokens.idx")
    index.write_bytes(b"X" * index.stat().st_size)
    return path


def without_tokenizer(folder: Path) -> str:
    path = data_set(folder / "bpe", ["a text " * 9], str(byte_level(folder)))
    (path / "tokenizer.json").unlink()
    return str(path)


def odd_tokenizer(folder: Path, **beside: object) -> str:
    path = byte_level(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(beside) if beside else "{")
    return f"--tokenizer={path}"


MISTAKES = {
    # what is packed
    "an empty .jsonl.gz": (
        lambda d: prepare(made(d / "x.jsonl.gz", b"")),
        "x.jsonl.gz cannot be read: it is empty",
    ),
    "an empty .txt.gz": (
        lambda d: prepare(made(d / "x.txt.gz", b"")),
        "x.txt.gz cannot be read: it is empty",
    ),
    "an empty .txt.zst": (
        lambda d: prepare(made(d / "x.txt.zst", b"")),
        "x.txt.zst cannot be read: it is empty",
    ),
    "an empty .jsonl.zst": (
        lambda d: prepare(made(d / "x.jsonl.zst", b"")),
        "x.jsonl.zst cannot be read: it is emp",
    ),
    "an empty .gz among good files": (
        lambda d: prepare(made(d / "x.txt.gz", b""), good(d)),
        "x.txt.gz cannot be read: it is empty",
    ),
    "nothing, packed": (
        lambda d: prepare(made(d / "x.jsonl.gz", gzip.compress(b""))),
        "of 1 that were rejected: x.jsonl.gz:1: empty",
    ),
    "a .gz that is cut": (
        lambda d: prepare(made(d / "x.txt.gz", gzip.compress(os.urandom(999))[:-50])),
        "x.txt.gz cannot be read: Compressed file ended before",
    ),
    "a .gz with a wrong checksum": (
        lambda d: prepare(made(d / "x.txt.gz", gzip.compress(b"a text")[:-8] + bytes(8))),
        "x.txt.gz cannot be read: CRC check failed",
    ),
    "a .bz2": (lambda d: prepare(made(d / "x.txt.bz2")), "x.txt.bz2: what .bz2 holds is not known"),
    "Parquet in .gz": (
        lambda d: prepare(made(d / "x.parquet.gz")),
        "x.parquet.gz: what .gz holds is not known",
    ),
    "an empty Parquet": (
        lambda d: prepare(made(d / "x.parquet", b"")),
        "x.parquet cannot be read: Parquet file size",
    ),
    # what is no document
    "an empty .txt": (lambda d: prepare(made(d / "x.txt", b"")), "rejected: x.txt:1: empty"),
    "an empty .jsonl": (lambda d: prepare(made(d / "x.jsonl", b"")), "rejected: x.jsonl:1: empty"),
    "white space": (lambda d: prepare(made(d / "x.txt", b" \n\t\n")), "rejected: x.txt:1: empty"),
    "a zero byte": (lambda d: prepare(made(d / "x.txt", b"a\0b")), "x.txt:1: binary: it holds a zero byte"),
    "UTF-16": (
        lambda d: prepare(made(d / "x.txt", "a text".encode("utf-16"))),
        "x.txt:1: not UTF-8: byte 0xff at 0",
    ),
    "Latin-1": (lambda d: prepare(made(d / "x.txt", b"a\nna\xefve")), "x.txt:2: not UTF-8: byte 0xef at 4"),
    "half of a surrogate pair": (
        lambda d: prepare(made(d / "x.jsonl", b'{"text": "\\ud800"}')),
        "x.jsonl:1: half of a surrogate pair",
    ),
    "brackets without end": (lambda d: prepare(made(d / "x.jsonl", b"[" * 4000)), "x.jsonl:1: no JSON: "),
    "a number that is no JSON": (
        lambda d: prepare(made(d / "x.jsonl", b"NaN\n")),
        "x.jsonl:1: no JSON object",
    ),
    "a line that is cut": (
        lambda d: prepare(made(d / "x.jsonl", b'{"text": "a')),
        "x.jsonl:1: no JSON: Unterminated",
    ),
    "another field": (
        lambda d: prepare(made(d / "x.jsonl", b'{"text": "a"}'), "--field=body"),
        "x.jsonl:1: no field body; name other files, or another --field",
    ),
    "a field without a name": (
        lambda d: prepare(made(d / "x.jsonl", b'{"text": "a"}'), "--field="),
        "x.jsonl:1: no field ; name other files",
    ),
    "a line that is too long": (
        lambda d: prepare(made(d / "x.jsonl", b'{"text": "%s"}\n' % (b"a" * 5000))),
        "x.jsonl:1: longer than 0 MiB, which is the most of one line",
    ),
    "a text that is too long": (
        lambda d: prepare(made(d / "x.txt", b"a" * 5000)),
        "x.txt:1: longer than 0 MiB, which is the most of one document: write JSON Lines",
    ),
    # what is no file
    "a link to itself": (
        lambda d: prepare(linked(d / "x.txt", "x.txt")),
        "x.txt does not exist; name files or direc",
    ),
    "a directory that is a link to itself": (
        lambda d: prepare(linked(d / "in" / "loop", d / "in").parent),
        "in: none of its 0 files is text",
    ),
    "a link to nothing in a directory": (
        lambda d: prepare(linked(d / "in" / "x.txt", "nowhere").parent),
        "in: x.txt is not a regular file; remove it, or name other files",
    ),
    "a pipe": (lambda d: prepare(fifo(d / "x.txt")), "x.txt is no regular file; name files or directories"),
    "a pipe in a directory": (
        lambda d: prepare(fifo(made(d / "in" / "good.txt").with_name("x.txt")).parent),
        "in: x.txt is not a regular file; remove it",
    ),
    "a file that the system does not let be read": (
        lambda d: prepare(linked(d / "x.txt", "/proc/self/mem")),
        "x.txt cannot be read: Input/output error",
    ),
    "a name that is too long": (lambda d: prepare(d / ("x" * 300 + ".txt")), ": File name too long"),
    "a name with a zero byte": (
        lambda d: prepare(f"{d}/a\0b.txt"),
        "does not exist; name files or directories",
    ),
    "a directory of other files": (
        lambda d: prepare(made(d / "in" / "x.csv").parent),
        "in: none of its 1 files is text, JSON Lines or Parquet",
    ),
    "a prepared data set": (
        lambda d: prepare(prepared(d), f"--out={d / 'set'}"),
        "whole: none of its 3 files is text",
    ),
    # where it goes
    "into its own input": (
        lambda d: prepare(good(d / "in").parent, f"--out={d / 'in' / 'set'}"),
        "is inside of the input ",
    ),
    "onto its own input": (
        lambda d: prepare(good(d / "in").parent, f"--out={d / 'in'}"),
        "is inside of the input ",
    ),
    "onto its own file": (
        lambda d: prepare(good(d), f"--out={d / 'good.txt'}"),
        "good.txt cannot be written: File exi",
    ),
    "around its own input": (
        lambda d: prepare(good(d), f"--out={d}"),
        ": something else is there; name another --out",
    ),
    "below a file": (
        lambda d: prepare(good(d), f"--out={d / 'good.txt' / 'set'}"),
        "cannot be written: Not a directory",
    ),
    "onto a link to nothing": (
        lambda d: prepare(good(d), f"--out={linked(d / 'set', d / 'nowhere')}"),
        "set cannot be written: File exists",
    ),
    "a plan that is damaged": (
        lambda d: prepare(good(d), begun(d, b"{")),
        "begun: plan.json is damaged (Expecting property name",
    ),
    "a plan that is a list": (lambda d: prepare(good(d), begun(d, b"[1]")), "begun: plan.json is damaged"),
    "begun with another tokenizer": (
        lambda d: prepare(good(d), begun(d), f"--tokenizer={byte_level(d)}"),
        "begun: begun with another input (tokenizer differ)",
    ),
    "begun with other files": (
        lambda d: prepare(made(d / "other.txt"), begun(d)),
        "begun: begun with another input (files differ); name another --out, or remove it",
    ),
    "a whole one that is damaged": (
        lambda d: prepare(good(d), f"--out={prepared(d, 'manifest.json', b'{')}"),
        "whole: a prepared data set is there already; name another --out, or remove it",
    ),
    # options
    "no place": (lambda d: ["data", "prepare", str(good(d))], "the following arguments are required: --out"),
    "half a worker": (
        lambda d: prepare(good(d), "--workers=1.5"),
        "argument --workers: invalid int value: '1.5'",
    ),
    "workers below 0": (lambda d: prepare(good(d), "--workers=-1"), "--workers -1: at least 1"),
    "no action": (lambda d: ["data"], "the following arguments are required: ACTION"),
    "another action": (lambda d: ["data", "drop"], "argument ACTION: invalid choice: 'drop'"),
    # tokenizers
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
    # data sets
    "show nothing": (
        lambda d: ["data", "show", str(d / "nowhere")],
        "nowhere: no prepared data set (manifest.json is",
    ),
    "show text": (
        lambda d: ["data", "show", str(good(d).parent)],
        ": no prepared data set (manifest.json is not there)",
    ),
    "show a file": (
        lambda d: ["data", "show", str(good(d))],
        "good.txt: no prepared data set (manifest.json is not th",
    ),
    "show what is unfinished": (
        lambda d: ["data", "show", begun(d).removeprefix("--out=")],
        "begun: preparing it was interrupted; run the same hcmegatron data prepare again",
    ),
    "a manifest that is no JSON": (
        lambda d: ["data", "show", prepared(d, "manifest.json", b"{")],
        "whole: manifest.json is damaged (",
    ),
    "a manifest that is a list": (
        lambda d: ["data", "check", prepared(d, "manifest.json", b"[]")],
        "whole: manifest.json is damaged (",
    ),
    "a manifest in another encoding": (
        lambda d: ["data", "show", prepared(d, "manifest.json", b"\xff\xfe")],
        "whole: manifest.json is damaged (",
    ),
    "a manifest of another version": (
        lambda d: ["data", "show", prepared(d, format=2)],
        "whole: manifest.json is of another version of hcmegatron; prepare the data again",
    ),
    "a manifest that was changed": (
        lambda d: ["data", "show", prepared(d, tokens=9)],
        "whole: manifest.json was changed after it was written; prepare the data again",
    ),
    "a manifest without a word": (
        lambda d: ["data", "show", prepared(d, documents=None)],
        "whole: manifest.json is damaged (",
    ),
    "a manifest with a word more": (
        lambda d: ["data", "show", prepared(d, more=1)],
        "whole: manifest.json is damaged (",
    ),
    "tokens that are gone": (
        lambda d: ["data", "check", prepared(d, "tokens.bin")],
        "whole: tokens.bin is missing; copy or prepare the data again",
    ),
    "tokens that are cut": (
        lambda d: ["data", "show", prepared(d, "tokens.bin", b"")],
        "whole: tokens.bin has 0 bytes, and manifest.json says 154; copy or prepare the data again",
    ),
    "an index that is gone": (
        lambda d: ["data", "show", prepared(d, "tokens.idx")],
        "whole: tokens.idx is missing",
    ),
    "an index that is none": (
        lambda d: ["data", "show", damaged_index(d), "--sample=0", "--length=4"],
        "whole: tokens.idx is damaged (",
    ),
    "a tokenizer that is gone": (
        lambda d: ["data", "show", without_tokenizer(d), "--sample=0", "--length=4"],
        "bpe: tokenizer.json is missing; copy or prepare the data again",
    ),
    "a sample below 0": (
        lambda d: ["data", "show", prepared(d), "--sample=-1", "--length=8"],
        "--sample -1: ",
    ),
    "a sample beyond the last": (
        lambda d: ["data", "show", prepared(d), "--sample=9", "--length=8"],
        "whole has sequences 0 to 8 of 8 tokens",
    ),
    "a sample that is no number": (
        lambda d: ["data", "show", prepared(d), "--sample=first"],
        "argument --sample: invalid int value: 'first'",
    ),
    "a sequence of nothing": (
        lambda d: ["data", "show", prepared(d), "--sample=0", "--length=0"],
        "--length 0: at least 1",
    ),
    "a sequence longer than the set": (
        lambda d: ["data", "show", prepared(d), "--sample=0", "--length=77"],
        "--length 77: ",
    ),
    "a length without a sample": (
        lambda d: ["data", "show", prepared(d), "--length=7"],
        "--length 7: of a sequence, and none is asked for; add --sample N",
    ),
}


def content(folder: Path) -> dict[Path, bytes]:
    """Of all files below a folder."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "proc" not in str(path.resolve())
    }


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(mistake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_TEXT", 4096)
    make, words = MISTAKES[mistake]
    arguments = make(tmp_path)
    before = content(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("hcmegatron: error: ") and printed.err.count("\n") == 1, printed.err
    assert words in printed.err
    after = content(tmp_path)
    lost = {path for path in before if after.get(path) != before[path] and path.name != "plan.json"}
    whole = {path.name for path in after.keys() - before.keys()} & {"manifest.json", "tokens.bin", "t.json"}
    assert not lost and not whole


def test_a_set_that_another_process_prepares_is_left_to_it(tmp_path, capsys):
    begun(tmp_path)
    descriptor = os.open(tmp_path / "begun", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert main(prepare(tmp_path / "good.txt", f"--out={tmp_path / 'begun'}")) == 2
    finally:
        os.close(descriptor)
    assert "begun: another process is preparing it; wait for that" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "words"), [("tokens.bin", "CRC-32"), ("tokens.idx", "CRC-32")])
def test_a_byte_that_changed_is_found_by_check(file, words, tmp_path, capsys):
    path = Path(prepared(tmp_path), file)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert main(["data", "check", str(path.parent)]) == 1
    said = capsys.readouterr().out
    assert f"{file} has the {words} " in said and said.count("\n") == 1


def test_a_data_set_that_a_full_copy_lacks_is_whole_again_when_it_is_copied(tmp_path, capsys):
    path = Path(prepared(tmp_path))
    shutil.copytree(path, tmp_path / "copy")
    (path / "tokens.bin").unlink()
    assert main(["data", "check", str(path)]) == 2
    shutil.copy(tmp_path / "copy/tokens.bin", path)
    assert main(["data", "check", str(path)]) == 0
    assert written(tmp_path / "x").read_text() and "as they were written" in capsys.readouterr().out
