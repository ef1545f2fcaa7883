"""`hcmegatron data prepare`: the same data set from any number of processes, interrupted or not, of any format."""

import errno
import fcntl
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hcmegatron.cli import main
from hcmegatron.config import ConfigError
from hcmegatron.data import documents as documents_module
from hcmegatron.data import prepare
from hcmegatron.data.documents import documents, lines_before
from hcmegatron.data.huggingface import train_bpe
from hcmegatron.data.inputs import File, Piece, find_files, pieces
from hcmegatron.data.prepare import Preparation
from hcmegatron.data.prepared import MANIFEST, PARTS, PLAN, read_manifest
from hcmegatron.data.tokenizer import id_dtype
from hcmegatron.data.tokenizer_registry import build_tokenizer
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset
from tests.data import data_workers
from tests.data.prepared import data_set, lines, written
from tests.data.small_tokenizers import byte_level
from tests.ranks import run_ranks

TEXTS = [f"document {index}: " + "naïve \n" * (index % 9) + "end" for index in range(200)]
SMALL = {"piece_bytes": 1500}


def documents_of(path: Path) -> list[list[int]]:
    found = IndexedDataset(str(path / "tokens"))  # whose arrays do not outlive it
    return [document.tolist() for document in found[:]]


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("source") / "all.jsonl", TEXTS)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """All of it, by one process."""
    out = tmp_path_factory.mktemp("whole") / "set"
    Preparation([str(source)], "byte", out, **SMALL).run(1)
    return out


def test_megatron_reads_the_documents_each_with_its_end(whole):
    assert documents_of(whole) == [[*text.encode(), 256] for text in TEXTS]
    manifest = read_manifest(whole)
    sizes = [len(text.encode()) for text in TEXTS]
    assert (manifest.documents, manifest.tokens, manifest.bytes) == (200, sum(sizes) + 200, sum(sizes))
    assert (manifest.shortest, manifest.longest, manifest.byte_ratio) == (min(sizes), max(sizes), 1.0)
    assert sorted(path.name for path in whole.iterdir()) == ["manifest.json", "tokens.bin", "tokens.idx"]


def test_any_number_of_processes_makes_the_same(source, whole, tmp_path):
    Preparation([str(source)], "byte", tmp_path / "set", **SMALL).run(3)
    assert content(tmp_path / "set") == content(whole)
    assert len(pieces(find_files([str(source)])[0], 1500)) > 10


def test_an_interrupted_one_goes_on_with_whole_parts(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "set"
    usual = prepare.write_part

    def cut_off(piece, prefix, *others):
        if prefix.name == "000004":
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(piece, prefix, *others)

    monkeypatch.setattr(prepare, "write_part", cut_off)
    with pytest.raises(
        ConfigError, match=r"set cannot be written: No space left on device; make room, then run"
    ):
        Preparation([str(source)], "byte", out, **SMALL).run(1)
    with pytest.raises(ConfigError, match="was interrupted; run the same hcmegatron data prepare again"):
        read_manifest(out)
    monkeypatch.setattr(prepare, "write_part", usual)
    half = out / PARTS / "000001.bin"
    half.write_bytes(half.read_bytes()[:-2])  # as a machine that lost power may leave it
    (out / PARTS / "000002.json").unlink()
    done = Preparation([str(source)], "byte", out, **SMALL).run(1)
    assert done.parts_kept >= 2 and content(out) == content(whole)


def test_a_process_that_is_killed_is_one_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "write_part", lambda *_: os._exit(9))
    with pytest.raises(
        ConfigError, match=r"set: a process was killed, perhaps for want of memory; run the same"
    ):
        Preparation([str(source)], "byte", tmp_path / "set", **SMALL).run(2)


def test_ctrl_c_waits_for_no_piece(source, whole, tmp_path, monkeypatch):
    out, usual = tmp_path / "set", prepare.write_part

    def slow(piece, prefix, *others):
        if prefix.name == "000003":
            os.kill(os.getppid(), signal.SIGINT)
        if prefix.name > "000001":
            time.sleep(20)
        return usual(piece, prefix, *others)

    monkeypatch.setattr(prepare, "write_part", slow)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Preparation([str(source)], "byte", out, **SMALL).run(2)
    assert time.monotonic() - began < 15 and not multiprocessing.active_children()
    monkeypatch.setattr(prepare, "write_part", usual)
    done = Preparation([str(source)], "byte", out, **SMALL).run(1)
    assert done.parts_kept == 2 and content(out) == content(whole)


@pytest.mark.ranks
def test_ctrl_c_is_not_forgotten_where_processes_are_forked(source, tmp_path):
    """Python prints what a hook of a fork raises, and goes on."""
    words = ["data", "prepare", str(source), f"--out={tmp_path / 'set'}", "--workers=2"]
    run = {"preload": ("tests.data.data_workers",), "process_group": False, "timeout": 60}
    (statuses,) = run_ranks(1, data_workers.interrupted_in_a_fork, words, **run)
    assert statuses == [130, 0] and read_manifest(tmp_path / "set").documents == len(TEXTS)


def test_two_do_not_prepare_one_set(source, tmp_path):
    out = tmp_path / "set"
    with ExitStack() as stack:
        second = Preparation([str(source)], "byte", out, **SMALL)
        held = os.open(out, os.O_RDONLY)
        stack.callback(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"set: another process is preparing it"):
            second.run(1)
    second.run(1)


def test_the_first_of_equal_documents_is_kept(tmp_path):
    texts = ["one", "two", "one", "three", "two", "one", "four"] * 3
    done = data_set(tmp_path / "set", texts, drop_duplicates=True, piece_bytes=40)
    assert [bytes(d[:-1]) for d in documents_of(done)] == [b"one", b"two", b"three", b"four"]
    assert read_manifest(done).duplicates == 17


def test_every_format_is_the_same_documents(tmp_path):
    texts = [text.strip() for text in TEXTS[:30]]
    plain = lines(tmp_path / "a.jsonl", texts).read_bytes()
    folder = tmp_path / "texts"
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:02}.txt").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "c.jsonl.zst").write_bytes(
        b"".join(
            pyarrow.compress(half, "zstd", asbytes=True) for half in (plain[:700], plain[700:])
        )  # two frames
    )
    table = pyarrow.table({"text": texts, "number": range(30)})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    for name in ("a.jsonl", "texts", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        out = tmp_path / f"set of {name}"
        Preparation([str(tmp_path / name)], "byte", out, piece_bytes=200).run(1)
        assert documents_of(out) == [[*text.encode(), 256] for text in texts], name


def test_lines_belong_to_one_piece_wherever_it_ends(source):
    """And are numbered through the file."""
    size = source.stat().st_size
    whole = [(one.line, one.text) for one in documents(Piece((File(source.name, source, size),)), "text")]
    assert whole == [(number + 1, text) for number, text in enumerate(TEXTS)]
    for piece_bytes in (1, 2, 61, 700):
        cut = [
            Piece((File(source.name, source, size),), at, min(at + piece_bytes, 900))
            for at in range(0, 900, piece_bytes)
        ]
        found = [
            (one.line + lines_before(piece), one.text) for piece in cut for one in documents(piece, "text")
        ]
        assert found == whole[: len(found)] and len(found) > 8


def test_a_line_that_is_too_long_is_rejected_whole(tmp_path, monkeypatch):
    """Its tail, which would be a document, is none; a line of just the limit is."""
    limit = 1 << 20
    monkeypatch.setattr(documents_module, "LONGEST_TEXT", limit)
    tail, most = b'{"text": "tail"}\n', b'{"text": "%s"}' % (b"a" * (limit - 12))
    path = tmp_path / "a.jsonl"
    path.write_bytes(most + b"\n" + b"x" * (limit + 1) + tail + b'{"text": "next"}\n' + most + b" ")
    found = list(documents(Piece((File(path.name, path, path.stat().st_size),)), "text"))
    assert [(one.line, getattr(one, "reason", one[2][-4:])) for one in found] == [
        (1, "aaaa"),
        (2, "longer than 1 MiB, which is the most of one line"),
        (3, "next"),
        (4, "longer than 1 MiB, which is the most of one line"),
    ]


def test_a_data_set_is_shown_and_checked(tmp_path, capsys):
    tokenizer = byte_level(tmp_path)
    path = data_set(tmp_path / "set", ["abcd dcba", "the end", "naïve"], str(tokenizer))
    assert main(["data", "show", str(path)]) == 0
    assert capsys.readouterr().out.startswith("3 documents, ")
    assert main(["data", "show", str(path), "--sample=0", "--length=8"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("sequence 0 of ") and "tokens 0 to 8" in shown[0]
    first = len(build_tokenizer(str(tokenizer)).encode("abcd dcba"))
    assert shown[1] == f"--- {first + 1} tokens of a document, and its end" and shown[3] == "abcd dcba"
    assert main(["data", "show", str(path), "--sample=99"]) == 2
    assert main(["data", "show", str(path), "--sample=0", "--length=99"]) == 2
    assert f"--length 99: {path} has " in capsys.readouterr().err
    assert main(["data", "check", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"{path}: 3 files, 3 documents: as they were written\n")
    for name, at in (("tokenizer.json", 9), ("tokens.bin", 3), ("tokens.idx", 40)):
        changed = bytearray((path / name).read_bytes())
        changed[at] ^= 64
        (path / name).write_bytes(changed)
        assert main(["data", "check", str(path)]) == 1
        assert f"{path}: {name} has the CRC-32 " in capsys.readouterr().out
    for fault, words in (
        (lambda: (path / "tokens.bin").write_bytes(b""), "tokens.bin has 0 bytes, and manifest.json says "),
        (lambda: (path / "tokens.bin").unlink(), "tokens.bin is missing; copy or prepare the data again"),
        (lambda: _change(path / MANIFEST, tokens=7), "manifest.json was changed after it was written"),
        (lambda: _change(path / MANIFEST, more=7), "manifest.json is damaged "),
        (lambda: _change(path / MANIFEST, format=9), "manifest.json is of another version"),
        (lambda: (path / MANIFEST).write_text("{"), "manifest.json is damaged "),
        (lambda: (path / MANIFEST).unlink(), "no prepared data set (manifest.json is not there)"),
    ):
        fault()
        assert main(["data", "check", str(path)]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and words in printed, words


def _change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_vocabulary_is_trained_and_goes_with_its_data_set(tmp_path, capsys):
    source = lines(tmp_path / "a.jsonl", TEXTS)
    assert main(["data", "tokenizer", "--vocab=300", f"--out={tmp_path / 'tok.json'}", str(source)]) == 0
    assert "tok.json: 300 ids, of 1 files, 0 lines or files rejected" in capsys.readouterr().out
    out = tmp_path / "set"
    arguments = ["data", "prepare", str(source), f"--tokenizer={tmp_path / 'tok.json'}", f"--out={out}"]
    assert main(arguments) == 0
    assert f"--data.tokenizer={out / 'tokenizer.json'}" in capsys.readouterr().out
    own = build_tokenizer(str(out / "tokenizer.json"))
    assert own.fingerprint == read_manifest(out).fingerprint and own.vocab_size == 300
    assert [own.decode(np.array(document)) for document in documents_of(out)] == TEXTS
    shutil.rmtree(out)
    assert main(["data", "tokenizer", "--vocab=256", f"--out={tmp_path / 'tok.json'}", str(source)]) == 2
    assert "--vocab 256: a byte-level vocabulary has 256 bytes and the end" in capsys.readouterr().err
    assert main(["data", "tokenizer", "--vocab=300", f"--out={tmp_path / 'no' / 'x.json'}", str(source)]) == 2
    assert "the directory is not there" in capsys.readouterr().err
    for place, words in ((tmp_path, "Is a directory"), (tmp_path / ("x" * 255), "File name too long")):
        assert main(["data", "tokenizer", "--vocab=300", f"--out={place}", str(source)]) == 2
        assert f"error: --out {place}: {words}; name another file\n" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_found_before_the_training(tmp_path):
    read = []
    with pytest.raises(ConfigError, match=r"--out /proc/tok.json: .*; name another file"):
        train_bpe((read.append(text) or text for text in TEXTS), 300, Path("/proc/tok.json"))
    assert not read

    def full() -> Iterator[str]:
        yield "text"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match=r"tok.json: No space left on device; name another file"):
        train_bpe(full(), 300, tmp_path / "tok.json")
    assert list(tmp_path.iterdir()) == []


def test_nothing_at_all_is_one_line(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "other.jsonl").write_text("[]\n{}\n")
    for action in (["prepare"], ["tokenizer", "--vocab=300"]):
        for name, words in (
            ("empty", "of 0 that were rejected; name"),
            ("other", "of 2 that were rejected: other.jsonl:1: no JSON object; name"),
        ):
            out = tmp_path / f"{name}.json"
            assert main(["data", *action, str(tmp_path / f"{name}.jsonl"), f"--out={out}"]) == 2
            assert f"no document in the input, {words}" in capsys.readouterr().err
            assert not out.exists()


def test_a_file_that_is_named_twice_is_read_once(tmp_path, capsys):
    folder = written(tmp_path / "in" / "a.txt").parent
    (folder / "link.txt").symlink_to(folder / "a.txt")
    arguments = ["data", "prepare", str(folder), str(folder / "a.txt"), f"--out={tmp_path / 'set'}"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 files are named twice, and read once" and said[1].startswith("1 documents, ")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    assert main(["data", "prepare", str(folder), f"--out={tmp_path / 'other'}"]) == 2
    assert "in: gone.txt is not a regular file" in capsys.readouterr().err


def test_one_that_was_killed_at_its_very_end_is_whole(tmp_path, capsys):
    done = data_set(tmp_path / "set", ["a"])
    (done / PARTS).mkdir()
    (done / PLAN).write_text("{}")
    assert read_manifest(done).documents == 1
    assert main(["data", "prepare", str(written(tmp_path / "good.txt")), f"--out={done}"]) == 2
    assert sorted(path.name for path in done.iterdir()) == ["manifest.json", "tokens.bin", "tokens.idx"]


def test_an_unfinished_set_is_not_trained_on(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / PLAN).write_text("{}")
    with pytest.raises(ConfigError, match="was interrupted"):
        read_manifest(tmp_path / "set")


def test_ids_are_held_as_megatron_holds_them():
    for size in (257, 65499, 65500, 65536, 200_000):
        assert id_dtype(size) is DType.optimal_dtype(size)
        assert np.iinfo(id_dtype(size)).max >= size - 1
