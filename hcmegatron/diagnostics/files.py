"""Observations of a run in its directory: diagnostics.jsonl, and arrays in diagnostics/step-00000100.npz. No torch.

A line of diagnostics.jsonl is an observation: {"step", "tokens", "seconds", "scalars", "warnings"}. JSON has no NaN and
no infinity: such numbers are null there, and NaN when they are read.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

LINES, ARRAYS = "diagnostics.jsonl", "diagnostics"


@dataclass(frozen=True)
class Warned:
    """Something to look at.

    Attributes:
        code: which rule of diagnostics/rules.py.
        layer: the sub-layer, such as "layer 3 attention".
        value, bound: what was found, and from where on it is said.
        message: one line, with what to do about it.
    """

    code: str
    layer: str
    value: float
    bound: float
    message: str


@dataclass(frozen=True)
class Observation:
    """What the connections did after a step.

    Attributes:
        tokens: observed; 0 where only the step itself was looked at.
        seconds: that the observation took.
        arrays: by name (docs/diagnostics.md); of an observation that was read from a file, see `read_arrays`.
    """

    step: int
    tokens: int
    seconds: float
    scalars: dict[str, float]
    warnings: list[Warned] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def line(self) -> str:
        """Its line of diagnostics.jsonl."""
        fields = {name: value for name, value in vars(self).items() if name != "arrays"}
        fields["scalars"] = _finite(self.scalars)
        fields["warnings"] = [_finite(asdict(warned)) for warned in self.warnings]
        return json.dumps(fields, allow_nan=False) + "\n"


def read_observations(run: Path) -> list[Observation]:
    """All of a run directory, in order of their steps, without their arrays; none where there is no file.

    Lines that are no observation, such as the torn last one of a run that was killed, are passed over.
    """
    try:
        lines = (run / LINES).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = [observation for line in lines if (observation := _read(line)) is not None]
    return sorted(found, key=lambda observation: observation.step)


def read_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of the observation after `step`, by name; none where it has none."""
    try:
        with np.load(arrays_file(run, step), allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}


def write_arrays(run: Path, observation: Observation) -> None:
    """Write an observation's arrays, whole or not at all; OSError where that is not possible."""
    path = arrays_file(run, observation.step)
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **observation.arrays)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def arrays_file(run: Path, step: int) -> Path:
    """Where the arrays of a step are."""
    return run / ARRAYS / f"step-{step:08d}.npz"


def drop_later_arrays(run: Path, step: int) -> None:
    """Remove the arrays of observations after `step`, which a run that goes on from there makes anew."""
    for path in (run / ARRAYS).glob("step-*.npz"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            path.unlink()


def _read(line: bytes) -> Observation | None:
    try:
        entry = json.loads(line)
        scalars = {name: _number(value) for name, value in entry["scalars"].items()}
        warnings = [
            Warned(w["code"], w["layer"], _number(w["value"]), _number(w["bound"]), w["message"])
            for w in entry["warnings"]
        ]
        return Observation(
            int(entry["step"]), int(entry["tokens"]), float(entry["seconds"]), scalars, warnings
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(values: dict) -> dict:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
