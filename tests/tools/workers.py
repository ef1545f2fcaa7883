"""What a rank of a tools test runs."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys


def answers(names: list[str], words: list[str]) -> dict[str, tuple[int | str | None, str, str]]:
    """`python -m tools.NAME WORDS` of every program, in this process: exit status, standard output and error."""
    found = {}
    for name in names:
        sys.argv = [name, *words]
        sys.modules.pop(f"tools.{name}", None)  # where another program has imported it
        out, err = io.StringIO(), io.StringIO()
        status: int | str | None = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module(f"tools.{name}", run_name="__main__", alter_sys=True)
            except SystemExit as leaving:
                status = leaving.code
        found[name] = status, out.getvalue(), err.getvalue()
    return found
