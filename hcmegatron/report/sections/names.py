"""How several runs are told apart in a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from hcmegatron.report.inputs.run import Run


def letter(runs: Sequence[Run], run: Run) -> str:
    """A, B, C: short enough for the end of a curve; nothing where there is one run."""
    if len(runs) == 1:
        return ""
    number = list(runs).index(run)
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def titled(runs: Sequence[Run], run: Run) -> str:
    """The run's name with its letter in front."""
    return f"{letter(runs, run)}: {run.name}" if len(runs) > 1 else run.name
