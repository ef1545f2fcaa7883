"""diagnostics.jsonl and diagnostics/step-*.npz: what was observed of the connections (docs/diagnostics.md).

Of the arrays only those steps are read that a report shows.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hcmegatron.report import thin
from hcmegatron.report.inputs.json_lines import JsonLines

FILE, FOLDER = "diagnostics.jsonl", "diagnostics"
MOST_READ = 40  # observations of a run whose arrays a report shows
MOST_NUMBERS = 300_000  # of them together, a run; some seven bytes of the page each


@dataclass(frozen=True)
class Observation:
    """One look at the network.

    Attributes:
        scalars: summary figures by name, those that are numbers.
        warnings: what was found wrong: code, layer, value, bound, message.
        file: of its arrays; None where there are none.
    """

    step: int
    scalars: Mapping[str, float]
    warnings: tuple[Mapping[str, Any], ...]
    file: Path | None

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds; nothing where it is damaged."""
        try:
            with np.load(self.file) as found:
                return {name: found[name] for name in found.files}
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
            return {}


def read_observations(run: Path) -> tuple[list[Observation], list[str]]:
    """The observations by step, the later one where a step was observed twice; and what could not be read."""
    lines = JsonLines(run / FILE)
    lines.look()
    found: dict[int, Observation] = {}
    for entry in lines.entries:
        if type(entry.get("step")) is int:
            found[entry["step"]] = _observation(run, entry)
    for file in sorted((run / FOLDER).glob("step-*.npz")):
        digits = file.stem.removeprefix("step-")
        if digits.isascii() and digits.isdigit() and int(digits) not in found:
            found[int(digits)] = _observation(run, {"step": int(digits)})
    remarks = [f"{FILE}: lines left out that are none: {lines.unreadable}"] if lines.unreadable else []
    return [found[step] for step in sorted(found)], remarks


def shown(observations: Sequence[Observation], runs: int = 1) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Steps with the arrays of those that are looked at: as many as there is room for in a report of so many `runs`,
    evenly, the first and the last among them."""
    having = [each for each in observations if each.file is not None]
    if not having:
        return []
    numbers = sum(array.size for array in having[-1].arrays().values())
    room = max(2, min(MOST_READ, MOST_NUMBERS // runs // max(1, numbers)))
    return [(having[i].step, having[i].arrays()) for i in thin.chosen(len(having), room)]


def _observation(run: Path, entry: dict[str, Any]) -> Observation:
    scalars, warnings = entry.get("scalars"), entry.get("warnings")
    file = run / FOLDER / f"step-{entry['step']:08d}.npz"
    return Observation(
        step=entry["step"],
        scalars={
            str(name): _number(value)
            for name, value in (scalars.items() if isinstance(scalars, dict) else ())
            if np.isfinite(_number(value))
        },
        warnings=tuple(
            each for each in (warnings if isinstance(warnings, list) else ()) if isinstance(each, dict)
        ),
        file=file if file.is_file() else None,
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
