"""What was found: how bad it is, on which machines, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

FINE, FAULTS, BAD_NODES = 0, 5, 6  # exit statuses (docs/doctor.md)


class Level(IntEnum):
    """From good to bad. Only a fault changes the exit status."""

    OK = 0
    NOTE = 1  # something that could not be looked at, or is worth knowing
    WARNING = 2  # a run works, and is slower or less safe than it has to be
    FAULT = 3  # a run fails, or every rank is held up


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at, the same on every machine.
        value: what was found, in words.
        remedy: what to do about it, one line; "" where nothing has to be done.
        nodes: the machines that it is true of.
        machine: another machine would not have it: broken hardware, a link, a process that does not answer. Other
            faults are laid to machines only where at least as many do not have them.
    """

    level: Level
    name: str
    value: str
    remedy: str = ""
    nodes: tuple[str, ...] = ()
    machine: bool = False

    def on(self, *nodes: str) -> Finding:
        """The same of these machines."""
        return replace(self, nodes=nodes)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "level": self.level.name.lower(), "nodes": list(self.nodes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Finding:
        """The inverse of `as_json`."""
        return cls(**{**data, "level": Level[data["level"].upper()], "nodes": tuple(data["nodes"])})


def ok(name: str, value: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, name, value)


def note(name: str, value: str, remedy: str = "") -> Finding:
    """Worth knowing, and no harm."""
    return Finding(Level.NOTE, name, value, remedy)


def warning(name: str, value: str, remedy: str) -> Finding:
    """Slower or less safe than it has to be."""
    return Finding(Level.WARNING, name, value, remedy)


def fault(name: str, value: str, remedy: str, machine: bool = False) -> Finding:
    """A run would fail, or be held up."""
    return Finding(Level.FAULT, name, value, remedy, machine=machine)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first; what several machines have in common is said once.

    Of what is fine, or only worth knowing, the first machine's value stands for all.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        own = (finding.value, finding.remedy) if finding.level >= Level.WARNING else ()
        groups.setdefault((finding.level, finding.name, *own), []).append(finding)
    found = []
    for group in groups.values():
        values = list(dict.fromkeys(finding.value for finding in group))
        value = values[0] + (" (others differ)" if len(values) > 1 else "")
        nodes = tuple(dict.fromkeys(node for finding in group for node in finding.nodes))
        machine = any(finding.machine for finding in group)
        found.append(replace(group[0], value=value, nodes=nodes, machine=machine))
    return sorted(found, key=lambda finding: -finding.level)


@dataclass
class Report:
    """What was found, worst first, with every figure.

    Attributes:
        nodes: all machines, in order of their first rank.
        hung: a measurement has not ended, and never may.
    """

    findings: list[Finding]
    nodes: list[str]
    figures: dict[str, Any] = field(default_factory=dict)
    hung: bool = False

    def __post_init__(self) -> None:
        self.findings = merged(self.findings)

    @property
    def bad(self) -> list[str]:
        """The machines without which faults would be gone: those that only another machine mends, and those that at
        most half of the machines have."""
        bad = {
            node
            for finding in self.findings
            if finding.level is Level.FAULT and (finding.machine or 2 * len(finding.nodes) <= len(self.nodes))
            for node in finding.nodes
        }
        return [node for node in self.nodes if node in bad]

    @property
    def status(self) -> int:
        """The exit status: 0 without faults; 6 where leaving machines out mends all of them; 5 where some stay."""
        faults, bad = [one for one in self.findings if one.level is Level.FAULT], set(self.bad)
        if not faults:
            return FINE
        return BAD_NODES if all(one.nodes and bad.issuperset(one.nodes) for one in faults) else FAULTS
