"""Combinations of axes that are left out: a list of some axes' values, each a value or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hcmegatron.studies.axes import Axis, Point
from hcmegatron.studies.tree import Entry, refuse_unknown


@dataclass(frozen=True)
class Exclusion:
    """Runs at one of these points on each of these axes are left out.

    Attributes:
        labels: of the points, by axis.
    """

    labels: Mapping[str, frozenset[str]]
    entry: Entry = field(repr=False, compare=False)

    def holds(self, points: Mapping[str, Point]) -> bool:
        """Whether a run, at one point of every axis, is left out."""
        return all(points[axis].label in labels for axis, labels in self.labels.items())


def read_exclusions(entry: Entry, axes: Sequence[Axis]) -> tuple[Exclusion, ...]:
    """The list, every entry like {kind: residual, n: [2, 4]}.

    Raises:
        ConfigError: an axis or a value is none of the study's.
    """
    known = {axis.column: axis for axis in axes} | {axis.name: axis for axis in axes}
    found = []
    for item in entry.items():
        labels: dict[str, frozenset[str]] = {}
        for name, values in item.entries().items():
            refuse_unknown(values, name, known)
            several = values.items() if not _scalar(values) else [values]
            labels[known[name].name] = frozenset(_label(value, known[name]) for value in several)
        if not labels:
            raise item.error("leaves out every run; name axes, like {kind: residual, n: [2, 4]}")
        found.append(Exclusion(labels, item))
    return tuple(found)


def _scalar(entry: Entry) -> bool:
    return isinstance(entry.node.value, str)


def _label(entry: Entry, axis: Axis) -> str:
    written = entry.node.value if _scalar(entry) else ""
    for point in axis.points:
        if written in (point.label, point.entry.node.value, str(point.value)):
            return point.label
    there = ", ".join(str(point.value) for point in axis.points)
    raise entry.error(f"matches nothing: {axis.name} has {there}; correct it or leave the exclusion out")
