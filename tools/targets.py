"""Targets of a benchmark: in words for its table, and as its exit status."""

from __future__ import annotations

import sys


class Targets:
    """Each method compares with three digits, as tables show them, and returns the target in words.

    Attributes:
        missed: what did not reach its target, in words.
    """

    def __init__(self) -> None:
        self.missed: list[str] = []

    def at_most(self, what: str, measured: float, most: float) -> str:
        """`measured` may be `most`."""
        return self._need(what, measured, round(measured, 3) <= round(most, 3), f"at most {round(most, 3)}")

    def below(self, what: str, measured: float, bound: float, unit: str = "") -> str:
        """`measured` may not be `bound`."""
        return self._need(
            what, measured, round(measured, 3) < round(bound, 3), f"below {round(bound, 3)}{unit}"
        )

    def between(self, what: str, measured: float, least: float, most: float) -> str:
        """`measured` may be either."""
        return self._need(what, measured, least <= round(measured, 3) <= most, f"{least} to {most}")

    def _need(self, what: str, measured: float, holds: bool, target: str) -> str:
        if not holds:
            self.missed.append(f"{what}: {measured:.3f}, target {target}")
        return target


def exit_status(missed: list[str]) -> int:
    """Of the program: 1 where a target was missed, which it says once more."""
    for what in missed:
        print(f"missed: {what}", file=sys.stderr)
    return 1 if missed else 0
