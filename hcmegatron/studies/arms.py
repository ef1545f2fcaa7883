"""Arms, what a study compares: a kind of connection with all that it was set to, as the table's columns say, or else by
default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hcmegatron.config.schema import Config
from hcmegatron.connections.kinds import KINDS


class Arm(NamedTuple):
    """What is compared.

    Attributes:
        label: the kind's name among the study's kinds, which is its own unless the study gave it another.
        settings: of its kind's fields every one, in words; of a kind that is not known, those that the table has.
    """

    kind: str
    label: str
    settings: tuple[tuple[str, str], ...] = ()

    def get(self, setting: str, default: str = "") -> str:
        """A setting's value; the default where this arm has none."""
        return dict(self.settings).get(setting, default)


def arm_of(kind: str, label: str, columns: Mapping[str, str]) -> Arm:
    """The arm of a row.

    Args:
        label: "": the kind's own name.
        columns: of connections' settings, those that have a value there.
    """
    fields = defaults(kind)
    if fields is None:
        return Arm(kind, label or kind, tuple(columns.items()))
    written = {name: word(value) for name, value in fields.items()}
    return Arm(
        kind, label or kind, tuple({**written, **{k: v for k, v in columns.items() if k in fields}}.items())
    )


def defaults(kind: str) -> dict[str, Any] | None:
    """The fields of a kind with their defaults; None of one that is not known."""
    descriptor = KINDS.get(kind)
    if descriptor is None:
        return None
    return {field.name: field.default for field in dataclasses.fields(descriptor.settings)}


def columns_of(configs: Iterable[Config]) -> tuple[str, ...]:
    """The connections' settings that a table of these runs needs, for `arm_of` to know their arms: those that one of
    them has otherwise than by default."""
    found: dict[str, None] = {}
    for connection in (config.connection for config in configs):
        fields = defaults(connection.kind) or {}
        found |= {name: None for name, value in fields.items() if getattr(connection, name) != value}
    return tuple(found)


def word(value: object) -> str:
    """One spelling for a value, whatever a file made of it: 4.0 is 4, True is true, None is nothing."""
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower()
    if text.lower() in ("none", "nan"):
        return ""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)
