"""Prepared data sets that are damaged, unfinished or none: data show and check name what is wrong. More of blends is in
test_prepared_training.py."""

import shutil
from pathlib import Path

import pytest

from hcmegatron.cli import main
from tests.data.mistakes import begun, good, prepared, require_one_line
from tests.data.prepared import data_set, written
from tests.data.small_tokenizers import byte_level


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


MISTAKES = {
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


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(mistake, tmp_path, capsys, monkeypatch):
    require_one_line(*MISTAKES[mistake], tmp_path, capsys, monkeypatch)


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
