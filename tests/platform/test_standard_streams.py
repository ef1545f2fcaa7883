"""Closed and full standard streams end nothing and are not written into files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(code, redirect):
    command = f"{sys.executable} -c '{code}' {redirect}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def test_a_closed_stream_is_not_given_to_the_next_file(tmp_path):
    code = (
        "import os; from hcmegatron.platform.standard_streams import *; stand_in_for_closed(); "
        'file = open("data", "w"); print("lost", flush=True); os.write(1, b"lost"); os.write(2, b"lost"); '
        'tell("lost"); file.write(str(file.fileno() > 2))'
    )
    done = python(f'import os; os.chdir("{tmp_path}"); {code}', ">&- 2>&- <&-")
    assert done.returncode == 0 and (tmp_path / "data").read_text() == "True"


def test_telling_into_a_full_or_closed_place():
    code = 'from hcmegatron.platform.standard_streams import tell; tell("one"); tell("two"); print("went on")'
    for redirect in ("2>/dev/full", "2> >(true)"):
        done = python(code, redirect)
        assert (done.returncode, done.stdout) == (0, "went on\n")
