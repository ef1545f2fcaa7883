"""The fewest settings with which a case still fails: each is put back to its simplest value where the failure stays."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import flatten
from tests.fuzz import space
from tests.fuzz.cases import LAYOUT, Case, fits, put


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A smaller case for which `fails` still holds, as far as single settings go, and pairs of a section's."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(case):
            if _valid(smaller) and fails(smaller):
                case, changed = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """The case with one step undone: the other layout, a number of ranks, a setting of both or of one; or two settings
    of both that only go together, as a list of shares with its list of rates."""
    if case.other != case.config:
        yield Case(case.config, case.ranks, copy.deepcopy(case.config), case.ranks)
    for ranks in (1, 2):
        if ranks < case.ranks:
            yield Case(case.config, ranks, case.other, case.other_ranks)
        if ranks < case.other_ranks:
            yield Case(case.config, case.ranks, case.other, ranks)
    for key in space.drawn():
        simple = space.simplest(key)
        for which in (("config", "other"), *((("config",), ("other",)) if key in LAYOUT else ())):
            smaller = copy.deepcopy(case)
            for name in which:
                put(getattr(smaller, name), key, simple)
            if smaller != case:
                yield smaller
    values = flatten(case.config)
    left = [key for key in space.drawn() if values[key] != space.simplest(key)]
    for first, second in itertools.combinations(left, 2):
        if first.partition(".")[0] == second.partition(".")[0]:
            smaller = copy.deepcopy(case)
            for config, key in itertools.product((smaller.config, smaller.other), (first, second)):
                put(config, key, space.simplest(key))
            yield smaller


def _valid(case: Case) -> bool:
    try:
        fits(case.config, case.ranks)
        fits(case.other, case.other_ranks)
    except ConfigError:
        return False
    return flatten(case.config) != {}
