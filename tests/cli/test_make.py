"""make: an interpreter that cannot be used is one line, and nothing is set up."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'manager: no such version' >&2\necho 'these there are:' >&2\nexit 127", "does not start"),
        (
            'case "$*" in *info[[]*) echo 3.9 ;; *) echo False ;; esac',
            "is Python 3.9; 3.11 or newer is needed",
        ),
    ],
)
@pytest.mark.parametrize("target", ["test", "train", "setup", "lint", "bench"])
def test_an_interpreter_that_cannot_be_used_is_named(script, words, target, tmp_path):
    shutil.copy(MAKEFILE, tmp_path)
    stub = tmp_path / "python3.12"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    done = subprocess.run(
        ["make", target, f"PYTHON={stub}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"PYTHON={stub} {words}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "python3.12"]
    assert subprocess.run(["make", "clean", f"PYTHON={stub}"], cwd=tmp_path, timeout=60).returncode == 0
