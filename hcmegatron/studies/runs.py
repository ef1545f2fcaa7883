"""A run of a study, as others know it: its name, settings and length, and the decays that start from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Branch:
    """A decay from a run's checkpoint, which gives a loss after fewer tokens: `branch_settings` is its configuration.

    Attributes:
        at_step: of the run's checkpoint that it starts from.
        steps: its last step, the run's before at_step counted.
        tokens: that it has been trained with then.
    """

    name: str
    at_step: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
        name: its directory's: a label of every axis, in the file's order.
        axes: column -> value of every axis; tokens and lr in any case.
        settings: dotted key -> value over the base.
        tokens, steps: it is trained with.
        branches: decays that start from its checkpoints.
    """

    name: str
    axes: Mapping[str, str | int | float]
    settings: Mapping[str, Any]
    tokens: int
    steps: int
    branches: tuple[Branch, ...] = ()
