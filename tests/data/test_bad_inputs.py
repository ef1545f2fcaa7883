"""Input that data prepare cannot use, packed, as text, or no file at all, is one line that names it. More is in
test_prepare_mistakes.py."""

import gzip
import os
from pathlib import Path

import pytest

from tests.data.mistakes import good, linked, made, prepare, prepared, require_one_line


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


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
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(mistake, tmp_path, capsys, monkeypatch):
    require_one_line(*MISTAKES[mistake], tmp_path, capsys, monkeypatch)
