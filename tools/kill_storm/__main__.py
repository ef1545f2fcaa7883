"""Runs under fire: python -m tools.kill_storm --minutes 20 --folder DIR

Processes of small runs (ranks, the command) are sent signals at random moments, aimed at all phases, saving above all.
Half of the runs have --restarts, the others are continued by the same command. Wanted of every one: the statuses that
docs/checkpoints.md promises, nothing left running, no more steps lost than since the last save, an end within the
limits, and after the last step the losses, gradient norms and tensors of an undisturbed run, to the last bit.

DIR/kills.jsonl and DIR/runs.jsonl have what happened; another call with the same DIR adds to it. The directory of a run
that went wrong is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.kill_storm.campaign import fire, summary
from tools.kill_storm.kills import draw


def main(argv: list[str]) -> int:
    """Run; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.kill_storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=8, help="of a run")
    parser.add_argument("--runs", type=int, help="of this call, at most")
    parser.add_argument(
        "--moving", action="store_true", help="from layout to layout: whole, but not the same bits"
    )
    asked = parser.parse_args(argv)
    folder = asked.folder.resolve()
    wrong = fire(
        folder, draw, asked.kills, asked.minutes, lambda runs, kills: runs == asked.runs, moving=asked.moving
    )
    print(*summary(folder), sep="\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
