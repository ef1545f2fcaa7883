"""What was observed of the connections (docs/diagnostics.md), as hcmegatron/diagnostics/files.py reads it.

Of the arrays only those steps are read that a report shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hcmegatron.diagnostics import files
from hcmegatron.diagnostics.files import Warned
from hcmegatron.report import thin

MOST_READ = 40  # observations of a run whose arrays a report shows
MOST_NUMBERS = 300_000  # of them together, a run; some seven bytes of the page each


@dataclass(frozen=True)
class Observation:
    """One look at the network.

    Attributes:
        tokens: observed; 0 where only the step's loss was looked at.
        scalars: summary figures by name, those that are finite.
        file: of its arrays; None where there are none.
    """

    step: int
    tokens: int
    scalars: Mapping[str, float]
    warnings: tuple[Warned, ...]
    file: Path | None

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds; nothing where it is damaged."""
        try:
            return files.read_arrays(self.file.parent.parent, self.step) if self.file else {}
        except ValueError:
            return {}


def read_observations(run: Path) -> tuple[list[Observation], list[str]]:
    """The observations by step; and what could not be read."""
    try:
        kept, unreadable = files.read_lines(run)
    except OSError as error:
        return [], [f"{files.LINES} cannot be read: {error.strerror}"]
    found = {each.step: _observation(run, each) for each in kept}
    for file in sorted((run / files.ARRAYS).glob("step-*.npz")):
        digits = file.stem.removeprefix("step-")
        if digits.isascii() and digits.isdigit() and int(digits) not in found:
            found[int(digits)] = _observation(run, files.Observation(int(digits), 0, 0.0, {}))
    remarks = [f"{files.LINES}: lines left out that are none: {unreadable}"] if unreadable else []
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


def _observation(run: Path, kept: files.Observation) -> Observation:
    file = files.arrays_file(run, kept.step)
    finite = {name: value for name, value in kept.scalars.items() if np.isfinite(value)}
    return Observation(kept.step, kept.tokens, finite, tuple(kept.warnings), file if file.is_file() else None)
