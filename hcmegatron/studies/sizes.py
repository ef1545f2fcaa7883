"""Sizes by rule: settings of the model as functions of one dial (as nanochat's depth, from which all else follows)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.studies.tree import Entry, refuse_unknown

DIAL = "dial"
_KEYS = ("of", "times", "per", "plus", "multiple_of")


@dataclass(frozen=True)
class Rule:
    """value = of x times / per + plus, to the nearest multiple of `multiple_of`.

    Attributes:
        of: the dial, or a setting: of the base, or one whose rule stands before.
    """

    key: str
    entry: Entry
    of: str = DIAL
    times: float = 1.0
    per: float = 1.0
    plus: float = 0.0
    multiple_of: int = 0

    def __call__(self, values: Mapping[str, Any], dial: int) -> tuple[int, str]:
        """The value, and its reasoning in words.

        Raises:
            ConfigError: it is no whole number.
        """
        source = values[self.of]
        exact = source * self.times / self.per + self.plus
        words = f"{self.of} {source}"
        words += f" x {self.times:g}" if self.times != 1 else ""
        words += f" / {self.per:g}" if self.per != 1 else ""
        words += f" + {self.plus:g}" if self.plus else ""
        if self.multiple_of:
            value = max(1, math.floor(exact / self.multiple_of + 0.5)) * self.multiple_of
            words += f" = {exact:g}, to a multiple of {self.multiple_of}"
        elif exact != int(exact):
            raise self.entry.error(
                f"is {words} = {exact:g} for {DIAL} {dial}, which is no whole number; choose other numbers, or give "
                "multiple_of"
            )
        else:
            value = int(exact)
        return value, f"{self.key} = {words} = {value}"


class Size(NamedTuple):
    """The settings that the rules make of one value of the dial, and why."""

    dial: int
    entry: Entry
    settings: dict[str, Any]
    why: tuple[str, ...]


def sized(entries: Mapping[str, Entry], base: Config) -> list[Size]:
    """The sizes of the dial's values.

    Raises:
        ConfigError: a rule cannot be read, or makes of a value no setting.
    """
    known = {key: value for key, value in flatten(base).items() if isinstance(value, int | float)}
    rules: list[Rule] = []
    for key, entry in entries.items():
        if key != DIAL:
            entry.require_setting(key)
            rules.append(_rule(key, entry, [DIAL, *known, *(rule.key for rule in rules)]))
    if not rules:
        raise entries[DIAL].error("turns nothing; give rules beside it, like model.layers: {times: 1}")
    found = []
    for item in entries[DIAL].items():
        dial = item.value(int)
        if dial < 1:
            raise item.error("is out of range; it must be at least 1")
        values, why = {**known, DIAL: dial}, []
        settings: dict[str, Any] = {}
        for rule in rules:
            value, words = rule(values, dial)
            values[rule.key] = settings[rule.key] = rule.entry.made(rule.key, value)
            why.append(words)
        found.append(Size(dial, item, settings, tuple(why)))
    return found


def _rule(key: str, entry: Entry, sources: list[str]) -> Rule:
    given: dict[str, Any] = {}
    for name, own in entry.entries().items():
        refuse_unknown(own, name, _KEYS)
        given[name] = own.value({"of": str, "multiple_of": int}.get(name, float))
        if name in ("per", "times", "multiple_of") and given[name] <= 0:
            raise own.error("is out of range; it must be above 0")
        if name == "of" and given[name] not in sources:
            raise own.error(
                "is neither dial nor a number of the base or of a rule above it; name one of them"
            )
    return Rule(key, entry, **given)
