"""Axes of a study: what differs from run to run, each a list of points with a name.

`kind` (of the connection, with its options), `size` (by list or by rule), one of `tokens`, `tokens_per_parameter` and
`flops`, `seed`, `lr` and `lr_times` have a meaning of their own; every other axis is a setting of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.sizes import sized
from hcmegatron.studies.tree import Entry

BUDGETS = ("tokens", "tokens_per_parameter", "flops")  # of which a study has one, or none
SAFE = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of names that become directories
SEEDS = ("training.seed", "data.seed")  # of initialisation and dropout, and of the order of the data
LARGEST = 1e30


@dataclass(frozen=True)
class Point:
    """One value of an axis.

    Attributes:
        label: in a run's name.
        value: in tables.
        settings: dotted key -> value over the base.
        why: how the settings came about, for a size by rule.
    """

    label: str
    value: str | int | float
    entry: Entry = field(repr=False, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """What differs, and the points.

    Attributes:
        name: as written in the file.
        column: in tables and exclusions; of a setting its last part, where no other axis is called so.
    """

    name: str
    column: str
    points: tuple[Point, ...]


def read_axes(
    entries: Mapping[str, Entry], base: Config, with_settings: Config, folder: Path
) -> tuple[Axis, ...]:
    """The axes of a file, in its order.

    Args:
        base: what sizes that name another configuration are compared with.
        with_settings: the same with the study's settings, whose numbers rules of sizes may name.
        folder: where files that sizes name are looked for.

    Raises:
        ConfigError: one is unknown or empty, or a point is none of its values.
    """
    leaf = [name.rpartition(".")[2] for name in entries]
    found = []
    for name, entry in entries.items():
        column = name.rpartition(".")[2]
        taken = column in BUDGETS or (column == "lr" and name not in ("lr", "optimizer.lr"))
        column = name if taken or leaf.count(column) > 1 else column
        points = _points(name, entry, base, with_settings, folder)
        _distinct(points)
        found.append(Axis(name, column, points))
    return tuple(found)


def _points(name: str, entry: Entry, base: Config, with_settings: Config, folder: Path) -> tuple[Point, ...]:
    if name == "kind":
        return _kinds(entry)
    if name == "size":
        return _sizes(entry, base, with_settings, folder)
    if name == "seed":
        return tuple(_seed(item) for item in entry.items())
    if name == "lr":
        rates = [(item, item.setting("optimizer.lr")) for item in entry.items()]
        return tuple(Point(f"lr{_short(rate)}", rate, item, {"optimizer.lr": rate}) for item, rate in rates)
    if name in BUDGETS or name == "lr_times":
        values = [(item, _positive(item)) for item in entry.items()]
        return tuple(Point(_LABELS[name](value), value, item) for item, value in values)
    if "." not in name:
        special = ", ".join(("kind", "size", *BUDGETS, "seed", "lr", "lr_times"))
        if name not in flatten(base):
            raise entry.error(f"is no axis; axes are {special}, or a setting such as connection.n")
    entry.require_setting(name)
    return tuple(_setting(name, item) for item in entry.items())


def _kinds(entry: Entry) -> tuple[Point, ...]:
    """[residual, mhc], or each with a name and its options, mhc-n2: {kind: mhc, n: 2}; dotted ones are settings of
    other sections."""
    if not entry.is_mapping:
        kinds = [(item, item.setting("connection.kind")) for item in entry.items()]
        return tuple(Point(kind, kind, item, {"connection.kind": kind}) for item, kind in kinds)
    points = []
    for label, own in entry.entries().items():
        options = {} if own.is_null else own.entries()
        dotted = {key if "." in key else f"connection.{key}": option for key, option in options.items()}
        settings = {key: option.setting(key) for key, option in dotted.items()}
        if "connection.kind" not in settings:
            if label not in KINDS:
                raise own.error(f"has no kind; give kind: one of {', '.join(KINDS)}")
            settings = {"connection.kind": label, **settings}
        points.append(Point(_label(label, own), label, own, settings))
    return _some(entry, points)


def _sizes(entry: Entry, base: Config, with_settings: Config, folder: Path) -> tuple[Point, ...]:
    """By a rule of one dial; or each with a name and its settings, those of another configuration among them."""
    own = entry.entries()
    if "dial" in own:
        return tuple(
            Point(f"d{size.dial}", f"d{size.dial}", size.entry, size.settings, size.why)
            for size in sized(own, with_settings)
        )
    points = []
    for label, size in own.items():
        settings: dict[str, Any] = {}
        for key, value in ({} if size.is_null else size.entries()).items():
            if key == "config":
                settings |= _other(value, base, folder)
        for key, value in ({} if size.is_null else size.entries()).items():
            if key != "config":
                settings[key] = value.setting(key)
        points.append(Point(_label(label, size), label, size, settings))
    return _some(entry, points)


def _other(entry: Entry, base: Config, folder: Path) -> dict[str, Any]:
    """What a configuration has otherwise than the base, but for its connection, which is no size's."""
    from hcmegatron.config.load import load_config
    from hcmegatron.studies.places import configuration

    there, here = flatten(load_config(configuration(entry.value(str), folder))), flatten(base)
    return {k: v for k, v in there.items() if v != here[k] and not k.startswith("connection.")}


def _seed(entry: Entry) -> Point:
    seed = entry.setting("training.seed")
    return Point(f"seed{seed}", seed, entry, dict.fromkeys(SEEDS, seed))


def _setting(key: str, entry: Entry) -> Point:
    value, leaf = entry.setting(key), key.rpartition(".")[2]
    if isinstance(value, bool):
        return Point(leaf if value else f"no-{leaf}", str(value).lower(), entry, {key: value})
    if isinstance(value, int | float):
        return Point(f"{leaf}{_short(value)}", value, entry, {key: value})
    words = (
        [str(part) for part in value]
        if isinstance(value, list)
        else ["null" if value is None else str(value)]
    )
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-.")
    return Point(f"{leaf}-{label}" if label else leaf, "-".join(words), entry, {key: value})


def _positive(entry: Entry) -> float:
    value: float = entry.value(float)
    if not 0 < value <= LARGEST:
        raise entry.error(f"is out of range; it must be above 0 and at most {LARGEST:g}")
    return value


def _short(value: float) -> str:
    """A number in a name: 0.004, 1e12."""
    return f"{value:.10g}".replace("e+", "e")


def _thousands(value: float) -> str:
    """150K, 1.05T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.6g}{letter}"
    return _short(value)


_LABELS: Mapping[str, Callable[[float], str]] = {
    "tokens": lambda value: f"{_thousands(value)}tok",
    "tokens_per_parameter": lambda value: f"{_short(value)}tpp",
    "flops": lambda value: f"{_short(value)}flop",
    "lr_times": lambda value: f"lrx{_short(value)}",
}


def _label(label: str, entry: Entry) -> str:
    if not re.fullmatch(SAFE, label):
        raise entry.error(
            f"has the name {label!r}, which becomes part of a directory's; use letters, digits, dots, - and _"
        )
    return label


def _some(entry: Entry, points: list[Point]) -> tuple[Point, ...]:
    if not points:
        raise entry.error("is empty; give it a point or leave it out")
    return tuple(points)


def _distinct(points: tuple[Point, ...]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        if point.label in seen:
            raise point.entry.error(f"and another point of this axis are both called {point.label}; keep one")
        seen[point.label] = point
