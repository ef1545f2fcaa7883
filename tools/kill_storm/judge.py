"""Whether a run that was under fire has come to the same as an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hcmegatron.training import manifest


def losses(directory: Path) -> dict[int, tuple[float, float]]:
    """(loss, gradient norm) of every step that is on record, to the last digit."""
    return {
        line["step"]: (line["loss"], line["grad_norm"])
        for line in lines(directory / "metrics.jsonl", "train")
    }


def lines(file: Path, kind: str) -> list[dict[str, Any]]:
    """Of a file of JSON lines those of a kind (of an event); a torn one is none."""
    found = []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if kind in (entry.get("kind"), entry.get("event")):
            found.append(entry)
    return found


def newest_step(directory: Path) -> int:
    """Of the checkpoints that are whole by their manifest; 0 without any."""
    found = manifest.newest(directory)
    return manifest.read(found).step if found else 0


def tensors(directory: Path) -> dict[str, Any]:
    """Checksums of the newest checkpoint's files of tensors, and what it is of."""
    path = manifest.newest(directory)
    if path is None:
        return {}
    saved = manifest.read(path)
    manifest.verify(path, saved)
    files = {name: file.crc32 for name, file in saved.files.items() if name != ".metadata"}
    return {"step": saved.step, "samples": saved.samples, "updates": saved.updates, **files}


def differences(directory: Path, whole: Path) -> str:
    """The first thing that is another than in the undisturbed run; "" where all is the same."""
    here, there = losses(directory), losses(whole)
    for step in sorted(here.keys() | there.keys()):
        if here.get(step) != there.get(step):
            return f"step {step}: loss and gradient norm {here.get(step)}, undisturbed {there.get(step)}"
    mine, its = tensors(directory), tensors(whole)
    unequal = [name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)]
    return f"the last checkpoint: {', '.join(sorted(unequal))}" if unequal else ""
