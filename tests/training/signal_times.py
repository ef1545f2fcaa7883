"""Signals that ask a run to end, at random times of all phases, and what comes of each.

    python -m tests.training.signal_times --count 50 --folder DIR

SIGTERM, SIGUSR1, SIGINT and SIGHUP, to the command or to one rank. Wanted: status 75 (128 + N of who does not listen
yet), a checkpoint of the last step that was done, nothing left running; and that a run which is stopped again and again
comes to the losses, gradient norms and tensors of an undisturbed one, to the last bit. Another call with the same DIR
goes on.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tools.kill_storm.campaign import fire, summary
from tools.kill_storm.kills import Kill, Layout
from tools.kill_storm.phases import PHASES
from tools.kill_storm.storm import ASKS

OF_A_RUN = 5


def draw(random_: random.Random, layout: Layout) -> Kill:
    """Any of the signals, at any time."""
    rank = random_.choice([None, *range(layout.ranks)])
    return Kill(rank, random_.choice(ASKS), random_.choice(PHASES), random_.uniform(0.0, 0.05))


def main(argv: list[str]) -> int:
    """Run; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.signal_times")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args(argv)
    folder = asked.folder.resolve()
    wrong = fire(folder, draw, OF_A_RUN, enough=lambda runs, kills: kills >= asked.count, restarts=False)
    print(*summary(folder), sep="\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
