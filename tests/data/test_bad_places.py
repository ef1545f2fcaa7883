"""Where data prepare cannot write, and options that are none, are one line; nothing that is there is lost."""

import fcntl
import os

import pytest

from hcmegatron.cli import main
from tests.data.mistakes import begun, good, linked, made, prepare, prepared, require_one_line
from tests.data.small_tokenizers import byte_level

MISTAKES = {
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
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(mistake, tmp_path, capsys, monkeypatch):
    require_one_line(*MISTAKES[mistake], tmp_path, capsys, monkeypatch)


def test_a_set_that_another_process_prepares_is_left_to_it(tmp_path, capsys):
    begun(tmp_path)
    descriptor = os.open(tmp_path / "begun", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert main(prepare(tmp_path / "good.txt", f"--out={tmp_path / 'begun'}")) == 2
    finally:
        os.close(descriptor)
    assert "begun: another process is preparing it; wait for that" in capsys.readouterr().err
