"""Runs under fire one after another, what happened to each on record, and the record as tables."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tools.kill_storm.judge import lines
from tools.kill_storm.kills import LAYOUTS, Layout, same_network
from tools.kill_storm.phases import PHASES, Phases
from tools.kill_storm.storm import Draw, Storm, Wrong, whole

KILLS, RUNS, TEXT = "kills.jsonl", "runs.jsonl", "text.txt"


def fire(
    folder: Path,
    draw: Draw,
    kills: int,
    minutes: float = float("inf"),
    enough: Callable[[int, int], bool] = lambda runs, kills: False,
    restarts: bool | None = None,
    layouts: Sequence[Layout] = LAYOUTS,
    moving: bool = False,
) -> int:
    """Storms until the time is up; how many went wrong.

    Args:
        folder: of the record, to which this adds.
        draw: what is shot.
        kills: of a run, at most.
        enough: of how many runs of this call, and kills of all calls.
        restarts: whether runs have --restarts; None: drawn.
        layouts: of the runs, in turn.
        moving: runs may go on in another layout of the same network, and so to other bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / TEXT
    if not text.exists():
        text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    phases = Phases()
    phases.follow()
    deadline, wrong, done = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < deadline and not enough(done, len(_all(folder / KILLS))):
        number = len(_all(folder / RUNS))
        layout = layouts[number % len(layouts)]
        directory, reference = folder / f"run-{number}", folder / f"whole-{layouts.index(layout)}"
        shutil.rmtree(directory, ignore_errors=True)  # of a call that was cut off
        tell = partial(_add, folder / KILLS, number)
        others = [other for other in layouts if moving and same_network(other, layout)]
        storm = Storm(layout, number, text, directory, phases, tell, draw, restarts, others)
        found = ""
        whole(layout, text, reference)
        try:
            storm.run(kills)
            storm.compare(reference)
        except Wrong as error:
            found = str(error)
        outcome = {"layout": layout.name, "moved": storm.moved, "restarts": storm.restarts, "wrong": found}
        _add(folder / RUNS, number, outcome)
        print(
            f"run {number}, {layout.name}: {found or ('as undisturbed', 'moved, and whole')[storm.moved]}",
            flush=True,
        )
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
    said += [
        "",
        "| phase | " + " | ".join([*hows, "all", "while saving", "longest, s"]) + " |",
        "|---" * (len(hows) + 4) + "|",
    ]
    for phase in PHASES:
        counts = [hit[phase, how] for how in hows]
        took = [kill["seconds"] for kill in kills if kill["phase"] == phase]
        saving = sum(kill["saving"] for kill in kills if kill["phase"] == phase)
        longest = f"{max(took):.1f}" if took else ""
        said.append(f"| {phase} | " + " | ".join(map(str, [*counts, sum(counts), saving, longest])) + " |")
    said += ["", "| layout | kills | runs | as undisturbed |", "|---|---|---|---|"]
    for name in ranks:
        of = [run for run in runs if run["layout"] == name]
        good = sum(not run["wrong"] for run in of)
        said.append(f"| {name} | {sum(kill['layout'] == name for kill in kills)} | {len(of)} | {good} |")
    return said


def _all(file: Path) -> list[dict[str, Any]]:
    return lines(file, "kill") if file.exists() else []


def _add(file: Path, run: int, entry: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps({"kind": "kill", "run": run, **entry}) + "\n")
