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
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tools.kill_storm.judge import lines
from tools.kill_storm.kills import LAYOUTS
from tools.kill_storm.phases import PHASES, Phases
from tools.kill_storm.storm import Storm, Wrong, whole

KILLS, RUNS, TEXT = "kills.jsonl", "runs.jsonl", "text.txt"


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
    asked = parser.parse_args(argv)
    wrong = fire(asked.folder.resolve(), asked.minutes, asked.kills, asked.runs)
    print(*summary(asked.folder), sep="\n")
    return int(wrong > 0)


def fire(folder: Path, minutes: float, kills: int, most: int | None = None) -> int:
    """Storms until the time is up; how many went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / TEXT
    if not text.exists():
        text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    phases = Phases()
    phases.follow()
    deadline, wrong, done = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < deadline and done != most:
        number = len(_all(folder / RUNS))
        layout = LAYOUTS[number % len(LAYOUTS)]
        directory, reference = folder / f"run-{number}", folder / f"whole-{LAYOUTS.index(layout)}"
        shutil.rmtree(directory, ignore_errors=True)  # of a call that was cut off
        storm = Storm(
            layout,
            number,
            text,
            directory,
            phases,
            lambda kill, n=number: _add(folder / KILLS, {"run": n, **kill}),
        )
        found = ""
        whole(layout, text, reference)
        try:
            storm.run(kills)
            storm.compare(reference)
        except Wrong as error:
            found = str(error)
        _add(
            folder / RUNS, {"run": number, "layout": layout.name, "restarts": storm.restarts, "wrong": found}
        )
        print(f"run {number}, {layout.name}: {found or 'as undisturbed'}", flush=True)
        if not found:
            shutil.rmtree(directory)
            directory.with_suffix(".out").unlink()
        wrong, done = wrong + bool(found), done + 1
    return wrong


def summary(folder: Path) -> list[str]:
    """What has been so far, as tables in Markdown."""
    kills, runs = _all(folder / KILLS), _all(folder / RUNS)
    ranks = {layout.name: layout.ranks for layout in LAYOUTS}
    wrong = [run for run in runs if run["wrong"]]
    four = sum(ranks[kill["layout"]] == 4 for kill in kills)
    said = [
        f"{len(kills)} kills in {len(runs)} runs, {four} of them on four ranks; {len(wrong)} runs went wrong"
    ]
    said += [f"run {run['run']}, {run['layout']}: {run['wrong']}" for run in wrong]
    hit = Counter((kill["phase"], f"{kill['target']} {kill['signal']}") for kill in kills)
    hows = sorted({how for _, how in hit})
    said += ["", "| phase | " + " | ".join([*hows, "all"]) + " |", "|---" * (len(hows) + 2) + "|"]
    for phase in PHASES:
        counts = [hit[phase, how] for how in hows]
        said.append(f"| {phase} | " + " | ".join(map(str, [*counts, sum(counts)])) + " |")
    said += ["", "| layout | kills | runs | as undisturbed |", "|---|---|---|---|"]
    for name in ranks:
        of = [run for run in runs if run["layout"] == name]
        good = sum(not run["wrong"] for run in of)
        said.append(f"| {name} | {sum(kill['layout'] == name for kill in kills)} | {len(of)} | {good} |")
    return said


def _all(file: Path) -> list[dict[str, Any]]:
    return lines(file, "kill") if file.exists() else []


def _add(file: Path, entry: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps({"kind": "kill", **entry}) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
