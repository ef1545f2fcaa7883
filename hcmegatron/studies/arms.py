"""Arms, what a study compares: a kind of connection with all that it was set to, as the table's columns say, or else as
the run's configuration does, or else by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hcmegatron.config.types import Loader
from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.record import FILE, read_record


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


class Told(NamedTuple):
    """What a study's directory tells of a run: its kind's label, and the `connection` section."""

    label: str
    connection: Mapping[str, Any]


def arm_of(kind: str, columns: Mapping[str, str], told: Told) -> Arm:
    """The arm of a row.

    Args:
        columns: of connections' settings, those that have a value there.
    """
    label = told.label or kind
    descriptor = KINDS.get(kind)
    if descriptor is None:
        return Arm(kind, label, tuple(columns.items()))
    fields = {field.name: field.default for field in dataclasses.fields(descriptor.settings)}
    written = {name: word(told.connection.get(name, default)) for name, default in fields.items()}
    return Arm(kind, label, tuple({**written, **{k: v for k, v in columns.items() if k in fields}}.items()))


def teller(directory: Path | None) -> Callable[[str], Told]:
    """What is told of runs by their names: by a study's directory, and nothing without one."""
    labels = {}
    if directory is not None and (directory / FILE).is_file():
        labels = {entry.name: str(entry.axes.get("kind", "")) for entry in read_record(directory).entries}

    def told(run: str) -> Told:
        if directory is None:
            return Told("", {})
        files = (directory / "configs" / f"{run}.yaml", directory / "runs" / run / "config.yaml")
        return Told(labels.get(run, ""), next((_connection(file) for file in files if file.is_file()), {}))

    return told


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


def _connection(file: Path) -> Mapping[str, Any]:
    """That section of a configuration as it is dumped; the whole of 500 files would take seconds."""
    text = f"\n{file.read_text(encoding='utf-8')}".partition("\nconnection:\n")[2]
    lines = []
    for line in text.splitlines():
        if line and line[0] not in " #":
            break
        lines.append(line)
    found = yaml.load("\n".join(lines), Loader)
    return found if isinstance(found, dict) else {}
