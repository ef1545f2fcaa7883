"""What phases have found, on disk while the check runs and afterwards: a file of rows and one of its end for each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["passed", "failed", "crashed", "timed out", "interrupted", "skipped", "not run"]
ENDED: tuple[Status, ...] = (
    "passed",
    "failed",
    "crashed",
    "timed out",
)  # by itself; not run again on --resume
Row = dict[str, Any]
# What each kind of row has to have.
FIELDS = {
    "figure": ("what", "value", "unit"),
    "check": ("what", "holds", "detail"),
    "skipped": ("what", "reason"),
    "facts": (),
}
# What has to be the same for results to be of one check.
SAME = ("miniature", "gpus", "driver", "versions", "commit")


@dataclass(frozen=True)
class Outcome:
    """How a phase ended, and why, in words ("" where there is nothing to say). `seconds` that it took."""

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0


class PhaseRows(NamedTuple):
    """The rows of a phase, and how many lines are none."""

    rows: list[Row]
    unreadable: int


def parse(text: str) -> PhaseRows:
    """Rows of a file that may have been cut off, or written to by somebody else. Pure."""
    rows: list[Row] = []
    unreadable = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        fields = FIELDS.get(row.get("kind")) if isinstance(row, dict) else None
        if fields is None or any(name not in row for name in fields):
            unreadable += 1
        else:
            rows.append(row)
    return PhaseRows(rows, unreadable)


class Folder:
    """The files of one check."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def found(self, name: str) -> PhaseRows:
        """Nothing, where a phase has not begun."""
        path = self.rows(name)
        return parse(path.read_text(errors="replace")) if path.exists() else PhaseRows([], 0)

    def forget(self, name: str) -> None:
        """Before a phase begins again."""
        for path in self.path.glob(f"{name}.*"):
            if not path.is_dir():
                path.unlink()

    def keep(self, outcome: Outcome) -> None:
        """OSError: it could not be written."""
        self._write(f"{outcome.name}.json", asdict(outcome))

    def outcomes(self) -> dict[str, Outcome]:
        """Of the phases that have ended, in whatever way."""
        kept = {}
        for path in sorted(self.path.glob("*.json")):
            if path.name != "facts.json":
                try:
                    outcome = Outcome(**json.loads(path.read_text()))
                except (ValueError, TypeError):
                    continue  # half a file: as if it had not ended
                kept[outcome.name] = outcome
        return kept

    def keep_facts(self, facts: Mapping[str, Any]) -> None:
        """OSError: they could not be written."""
        self._write("facts.json", facts)

    def facts(self) -> dict[str, Any] | None:
        """None where there are none."""
        try:
            return json.loads((self.path / "facts.json").read_text())
        except (OSError, ValueError):
            return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        draft = self.path / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(content, indent=1))
        draft.replace(self.path / name)


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two machines or trees differ, so that their results do not belong into one table. Pure."""
    return [key for key in SAME if before.get(key) != now.get(key)]
