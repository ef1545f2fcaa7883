"""What is looked at on one machine: the table of checks. To add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from launch.doctor import devices, environment, limits, packages
from launch.doctor.findings import Finding, fault
from launch.doctor.subject import Subject

Check = Callable[[Subject], Iterable[Finding]]

OF_A_MACHINE: dict[str, Check] = {
    "packages": packages.check,
    "environment": environment.check,
    "limits": limits.check,
}
AFTER_LOAD: dict[str, Check] = {
    "devices": devices.check
}  # clocks and temperatures tell nothing of an idle GPU


def run_checks(checks: Mapping[str, Check], subject: Subject) -> list[Finding]:
    """What they find, on this machine. A check that breaks is itself a finding."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(subject)
        except Exception as error:  # of whatever kind: the others are still to be looked at
            words = " ".join(f"{type(error).__name__}: {error}".split())
            found.append(fault(name, f"could not be looked at: {words}", "report this; the rest still holds"))
    return [finding.on(subject.system.node) for finding in found]
