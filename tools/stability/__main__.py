"""Connections beyond their best learning rate: python -m tools.stability --folder DIR

The runs of docs/stability.md, two at a time, each in one process with one thread; then its tables and figure. Another
call with the same DIR goes on: finished runs are left alone. DIR/runs.jsonl has what every run has shown; stability.md,
stability.svg and stability.png are made of what is there. --quick is a miniature that shows only that all of it works.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # runs are forked, which a GPU would not survive

from hcmegatron.config.errors import ConfigError
from tools.stability import records
from tools.stability.campaign import campaign
from tools.stability.results import figure, tables
from tools.stability.rule import QUICK, Plan


def main(argv: Sequence[str]) -> int:
    """Run; 1 where there was no time for all runs, 2 for a folder that has others."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.stability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="what is not finished then is left to another call"
    )
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(argv)
    plan, folder = QUICK if asked.quick else Plan(), asked.folder.resolve()
    try:
        left = campaign(plan, folder, asked.minutes)
    except ConfigError as error:
        print(f"stability: error: {error}", file=sys.stderr)
        return 2
    made = records.read(folder)
    lines = tables(plan, made)
    (folder / "stability.md").write_text("\n".join(lines) + "\n")
    print(*lines, *figure(plan, made, folder), sep="\n")
    if left:
        print(f"{len(left)} runs and what follows from them are left: the same command goes on")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
