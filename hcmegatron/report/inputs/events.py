"""What happened in a run beside its steps: skips, rewinds, restarts, checkpoints, warnings, hangs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.report.inputs.json_lines import read_json
from hcmegatron.report.inputs.observations import Observation

CHECKPOINT = re.compile(r"step-([0-9]{8})(\.damaged(?:-[0-9]+)?)?")
SPIKE = "loss_spike"  # of the step alone: it is said once by whoever sees it (training/diagnostics.py)
KINDS = ("skip", "rewind", "death", "restart", "warning", "hang", "checkpoint")


class Event(NamedTuple):
    """Something that happened: after which step, where that is known; of KINDS; in words."""

    step: int | None
    kind: str
    words: str


def events(
    run: Path,
    metrics: Iterable[Mapping[str, Any]],
    restarts: Iterable[Mapping[str, Any]],
    observations: Iterable[Observation],
) -> list[Event]:
    """All of them by step; those without one last.

    Args:
        metrics, restarts: entries of metrics.jsonl and restarts.jsonl.
    """
    found = [
        *_of_metrics(run, metrics),
        *_of_restarts(restarts),
        *_of_checkpoints(run / "checkpoints"),
        *_of_observations(observations),
        *(
            Event(None, "hang", f"stacks of a hang: hang/{file.name}")
            for file in sorted((run / "hang").glob("*"))
        ),
    ]
    return sorted(found, key=lambda event: (event.step is None, event.step or 0, KINDS.index(event.kind)))


def _of_metrics(run: Path, metrics: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    """Steps that were not finite or spikes, and rewinds."""
    kept = {}
    for file in sorted((run / "anomalies").glob("step-*.json")):
        number = file.stem.removeprefix("step-")
        try:
            found = read_json(file) or {}
        except ValueError:
            found = {
                "step": int(number) if number.isdecimal() else None,
                "bad": f"{file.name} cannot be read",
            }
        if type(found.get("step")) is int:
            kept[found["step"]] = found
    for entry in metrics:
        step = entry.get("step")
        if type(step) is not int:
            continue
        odd = entry.get("nonfinite")
        if entry.get("kind") == "rewind":
            left = entry.get("left_out")
            yield Event(
                step,
                "rewind",
                f"back to the checkpoint after step {step} from step {entry.get('rewound_from')}"
                + (f"; sequences {left[0]} to {left[1] - 1} are left out" if _is_range(left) else ""),
            )
        elif isinstance(odd, dict) and odd.keys() & {"loss", "grad_norm"}:
            figures = ", ".join(f"{name} {odd[name]}" for name in ("loss", "grad_norm") if name in odd)
            yield Event(step, "skip", f"not finite: {figures}")
            kept.pop(step, None)
    for step, bad in kept.items():
        yield Event(step, "skip", f"bad step: {bad.get('bad') or 'loss ' + str(bad.get('loss'))}")


def _of_restarts(restarts: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    for entry in restarts:
        cause, seconds = entry.get("cause"), entry.get("seconds")
        cause = cause if isinstance(cause, dict) else {}
        if entry.get("event") == "ended":
            how = cause.get("signal") or f"status {cause.get('status')}"
            after = entry.get("gave_up")
            then = f"; not started again: {after}" if after else ""
            yield Event(
                _step(entry.get("after_step")), "death", f"rank {cause.get('rank')} ended with {how}{then}"
            )
        elif entry.get("event") == "resumed":
            parts = seconds.values() if isinstance(seconds, dict) else ()
            took = sum(part for part in parts if isinstance(part, int | float))
            yield Event(
                _step(entry.get("from_step")),
                "restart",
                f"restart {entry.get('restart')}; the first step came {took:.1f} s after its start",
            )


def _of_observations(observations: Iterable[Observation]) -> Iterator[Event]:
    """Every observation repeats what still holds: it is told once, and again after it has been gone."""
    standing: set[tuple[str, str]] = set()
    for seen in observations:
        for warned in seen.warnings:
            if warned.code == SPIKE or (warned.code, warned.layer) not in standing:
                yield Event(seen.step, "warning", warned.message)
        if seen.tokens:  # else the loss alone was looked at
            standing = {(warned.code, warned.layer) for warned in seen.warnings}


def _of_checkpoints(folder: Path) -> Iterator[Event]:
    for path in sorted(folder.glob("step-*")):
        found = CHECKPOINT.fullmatch(path.name)
        if found and path.is_dir():
            words = "set aside as damaged: " if found[2] else ""
            yield Event(int(found[1]), "checkpoint", f"{words}checkpoints/{path.name}")


def _step(value: Any) -> int | None:
    return value if type(value) is int else None


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)
