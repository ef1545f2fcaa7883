"""Colours of kinds, the same in every figure of every study, told apart without colour vision; markers and dashes of
their settings."""

from __future__ import annotations

from hcmegatron.connections.kinds import KINDS
from hcmegatron.report.files import COLOURS
from hcmegatron.studies.figures.plot import Style
from hcmegatron.studies.results import Arm, Results

GREY = COLOURS[-1]  # of the residual, which others are compared to


def styles(results: Results) -> dict[Arm, Style]:
    """The style of every arm."""
    kinds = [*KINDS, *sorted({arm.kind for arm in results.arms} - KINDS.keys())]
    found = {}
    for arm in results.arms:
        alike = [other for other in results.arms if other.kind == arm.kind]
        place = kinds.index(arm.kind)
        colour = COLOURS[(place - 1) % (len(COLOURS) - 1)] if place else GREY
        number = alike.index(arm)
        found[arm] = Style(colour, place + number, 1 - 0.6 * number / len(alike))
    return found
