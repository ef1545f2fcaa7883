"""What a rank does: the actions of a pipeline schedule, and how each is written.

The text of an action is the cell grammar of torch.distributed.pipelining's CSV files:
``0F3`` (forward of stage 0, micro-batch 3), ``1B2``, ``1I2``, ``1W2``, ``(0F3;3B1)OVERLAP_F_B``.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

OVERLAP = "OVERLAP_F_B"
_PLAIN = re.compile(r"([0-9]+)([FBIW])([0-9]+)")
_PAIRED = re.compile(rf"\(([0-9]+)F([0-9]+);([0-9]+)B([0-9]+)\){OVERLAP}")


class Kind(StrEnum):
    """F forward; B full backward; I gradient of the input only; W the deferred gradient of the weights that
    the same micro-batch's I left behind; FB a forward of one stage overlapped with a full backward of
    another."""

    F = "F"
    B = "B"
    I = "I"
    W = "W"
    FB = "FB"

    # Enum's own __hash__ is Python code, and actions are dictionary keys everywhere.
    __hash__ = str.__hash__


class Action(NamedTuple):
    """One entry of a rank's list.

    ``stage`` is a stage id as the placement numbers it (for DualPipe each copy has its own id),
    ``microbatch`` counts from 0 over all micro-batches of the step. For FB they name the forward half, and
    ``overlapped`` holds the backward half, an Action of kind B.
    """

    kind: Kind
    stage: int
    microbatch: int
    overlapped: Action | None = None

    @property
    def parts(self) -> tuple[Action, ...]:
        """The plain actions in it: (F, B) for FB, itself alone for every other kind."""
        if self.overlapped is None:
            return (self,)
        return (Action(Kind.F, self.stage, self.microbatch), self.overlapped)

    def __str__(self) -> str:
        if self.overlapped is not None:
            return f"({self.stage}F{self.microbatch};{self.overlapped}){OVERLAP}"
        return f"{self.stage}{self.kind.value}{self.microbatch}"


def F(stage: int, microbatch: int) -> Action:
    return Action(Kind.F, stage, microbatch)


def B(stage: int, microbatch: int) -> Action:
    return Action(Kind.B, stage, microbatch)


def I(stage: int, microbatch: int) -> Action:  # noqa: E743, the field's name for it
    return Action(Kind.I, stage, microbatch)


def W(stage: int, microbatch: int) -> Action:
    return Action(Kind.W, stage, microbatch)


def FB(forward: Action, backward: Action) -> Action:
    """``forward`` (kind F) overlapped with ``backward`` (kind B)."""
    if forward.kind is not Kind.F or backward.kind is not Kind.B:
        raise ValueError(f"FB overlaps an F with a B, not {forward} with {backward}")
    return Action(Kind.FB, forward.stage, forward.microbatch, backward)


def parse_action(text: str) -> Action:
    """The inverse of ``str(action)``; ValueError says what a cell may hold."""
    cell = text.strip()
    if match := _PLAIN.fullmatch(cell):
        return Action(Kind(match[2]), int(match[1]), int(match[3]))
    if match := _PAIRED.fullmatch(cell):
        f_stage, f_microbatch, b_stage, b_microbatch = map(int, match.groups())
        return FB(F(f_stage, f_microbatch), B(b_stage, b_microbatch))
    raise ValueError(f"{cell!r} is no action: expected one like 0F3, 1B2, 1I2, 1W2 or (0F3;3B1){OVERLAP}")
