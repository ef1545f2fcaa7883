"""Observations of a run in its directory: diagnostics.jsonl, and arrays in diagnostics/step-00000100.npz. No torch.

A line of diagnostics.jsonl is an observation: {"step", "tokens", "seconds", "scalars", "warnings"}. JSON has no NaN and
no infinity: such numbers are null there, and NaN when they are read.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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


class Lines(NamedTuple):
    """Observations in order of their steps, without their arrays; how many whole lines are none."""

    observations: list[Observation]
    unreadable: int


def read_observations(run: Path) -> list[Observation]:
    """All of a run directory, in order of their steps, without their arrays; none where there is no file."""
    return read_lines(run).observations


def read_lines(run: Path) -> Lines:
    """As `read_observations`, and what could not be read.

    A step whose loss spikes and that is observed too has two lines, which are one observation here. A last line that is
    torn, as of a run that was killed, is passed over; scalars and warnings that are none are left out.
    """
    try:
        whole, _, torn = (run / LINES).read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return Lines([], 0)
    read = [_read(line) for line in whole.splitlines() if line.strip()]
    found: dict[int, Observation] = {}
    for each in filter(None, [*read, _read(torn)]):
        found[each.step] = _merged(found[each.step], each) if each.step in found else each
    return Lines([found[step] for step in sorted(found)], read.count(None))


def read_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of the observation after `step`, by name; none where it has none.

    Raises:
        ValueError: their file is damaged.
    """
    path = arrays_file(run, step)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


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
        step, scalars, warnings = entry["step"], entry["scalars"].items(), list(entry["warnings"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if type(step) is not int or step < 0:
        return None
    tokens = entry.get("tokens")
    return Observation(
        step,
        tokens if type(tokens) is int else 0,
        _number(entry.get("seconds")),
        {name: _number(value) for name, value in scalars if _is_number(value)},
        [warned for each in warnings if (warned := _warned(each)) is not None],
    )


def _warned(entry: Any) -> Warned | None:
    try:
        code, layer, message = (str(entry[name]) for name in ("code", "layer", "message"))
        return Warned(code, layer, _number(entry["value"]), _number(entry["bound"]), message)
    except (KeyError, TypeError):
        return None


def _merged(first: Observation, second: Observation) -> Observation:
    """Two lines of one step as one; of a figure that both have, the later one's."""
    return replace(
        second,
        tokens=max(first.tokens, second.tokens),
        seconds=first.seconds + second.seconds,
        scalars=first.scalars | second.scalars,
        warnings=[*first.warnings, *(each for each in second.warnings if each not in first.warnings)],
    )


def _is_number(value: Any) -> bool:
    """JSON's null is one, which is not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    try:
        return float(value) if _is_number(value) and value is not None else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _finite(values: dict) -> dict:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
