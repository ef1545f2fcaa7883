"""The stability figure in miniature, in a process that may fork."""

from __future__ import annotations

import os
from pathlib import Path

from tools.stability import records
from tools.stability.__main__ import main


def quick(folder: Path) -> list[int]:
    """Exit statuses: of a call without time, of one that makes all runs, of one after two of them were cut off, and of
    one that asks for other runs."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # no launcher's rank: every run is one process alone
    words = ["--quick", "--folder", str(folder)]
    statuses = [main([*words, "--minutes=0"]), main(words)]
    file = folder / records.FILE
    lines = file.read_text().splitlines(keepends=True)
    (folder / "before.jsonl").write_text("".join(lines))
    file.write_text("".join(lines[:-2]))  # the directories are there
    for directory in folder.glob("*-*-*/"):
        (directory / "seen").touch()
    return [*statuses, main(words), main(["--folder", str(folder)])]
