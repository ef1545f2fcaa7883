"""Colours of kinds, the same in every figure of every study, told apart without colour vision; markers and dashes of
their settings."""

from __future__ import annotations

from collections.abc import Iterable

from hcmegatron.connections.kinds import KINDS
from hcmegatron.report.files import COLOURS
from hcmegatron.studies.figures.plot import Style
from hcmegatron.studies.results import Arm, Results

GREY = COLOURS[-1]  # of the residual, which others are compared to


def kind_styles(kinds: Iterable[str]) -> dict[str, Style]:
    """Of kinds by name: those that are registered look as they do everywhere, and others come after them."""
    known = [*KINDS, *sorted({*kinds} - KINDS.keys())]
    return {
        kind: Style(COLOURS[(place - 1) % (len(COLOURS) - 1)] if place else GREY, place)
        for place, kind in enumerate(known)
    }


def styles(results: Results) -> dict[Arm, Style]:
    """The style of every arm."""
    kinds = kind_styles(arm.kind for arm in results.arms)
    found = {}
    for arm in results.arms:
        alike = [other for other in results.arms if other.kind == arm.kind]
        number, own = alike.index(arm), kinds[arm.kind]
        found[arm] = own._replace(variant=own.variant + number, shade=1 - 0.6 * number / len(alike))
    return found
