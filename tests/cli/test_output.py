"""What the command prints where nobody takes it, and in a locale without its letters."""

import os
import subprocess
import sys

import pytest

from tests.cli.command import QUICKSTART, ROOT, program

pytestmark = pytest.mark.usefixtures("by_itself")
SPEAKING = [
    ["config"],
    ["--help"],
    ["train", "--help"],
    ["--version"],
    ["schedule", "1f1b", "--ranks=2", "--microbatches=4"],
    ["schedule", "--help"],
]


@pytest.mark.parametrize("arguments", SPEAKING, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes(arguments, unbuffered):
    """A reader that has gone, as head does, is no error; a full disk is one line."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "hcmegatron", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as broken:
        gone = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, env=env, text=True, timeout=60)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, text=True, timeout=60)
    assert (gone.returncode, gone.stderr) == (0, "")
    line = "hcmegatron: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["", "C"])
def test_names_that_are_not_text_in_the_locale_are_written_out(locale, tmp_path):
    name = os.fsdecode(b"f\xff\xc3\xa9.yaml")
    (tmp_path / name).write_text("training:\n  steps: 3\nconnection:\n  kind: residual\n  n: 4\n")
    done = program("config", name, **locale)
    assert done.returncode == 0 and done.stderr.count("udcff") == done.stderr.count("warning") == 2
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"\0" * 400)
    done = program("train", QUICKSTART, "--data.paths=[.]", "--run.dir=\u00e9", **locale)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "udcff.txt is binary" in done.stderr
