"""What a check has found, as JSON and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.gpu_check.phases import Phase
from tools.gpu_check.results import Outcome, Row

NOT_MEASURED = "not measured"


def as_json(
    facts: Mapping[str, Any],
    phases: Sequence[Phase],
    outcomes: Mapping[str, Outcome],
    rows: Mapping[str, Sequence[Row]],
    logs: Mapping[str, str],
) -> dict[str, Any]:
    """Everything. In miniature `measured` is False: no figure in it is of a GPU.

    Args:
        outcomes: a phase without one was not run.
        logs: the last lines of those that have not passed.
    """
    return {
        "machine": dict(facts),
        "measured": not facts["miniature"],
        "phases": [
            {
                "name": phase.name,
                "answers": phase.answers,
                "decides": phase.decides,
                "seconds_allowed": phase.seconds,
                **_ended(outcomes.get(phase.name)),
                "rows": list(rows.get(phase.name, ())),
                **({"log": logs[phase.name]} if phase.name in logs else {}),
            }
            for phase in phases
        ],
    }


def as_markdown(report: Mapping[str, Any]) -> str:
    """The machine, a line for each phase, and a line for each thing that was found."""
    measured = report["measured"]
    lines = ["# GPU check", "", *_machine(report["machine"]), ""]
    if not measured:
        lines += [
            "In miniature, on a CPU: it shows that the program runs. Nothing in it was measured on a GPU.",
            "",
        ]
    lines += _table(
        ("phase", "ended", "seconds", "allowed", "checks"),
        (
            (
                phase["name"],
                f"{phase['status']}: {phase['reason']}" if phase["reason"] else phase["status"],
                f"{phase['seconds']:.1f}",
                str(phase["seconds_allowed"]),
                _count(phase["rows"]),
            )
            for phase in report["phases"]
        ),
    )
    for phase in report["phases"]:
        if phase["rows"]:
            lines += ["", f"## {phase['name']}", "", phase["answers"], ""]
            lines += _table(("", "found"), ((row["what"], _found(row, measured)) for row in phase["rows"]))
    return "\n".join(lines) + "\n"


def _ended(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"status": "not run", "reason": "", "seconds": 0.0}
    return {"status": outcome.status, "reason": outcome.reason, "seconds": outcome.seconds}


def _machine(facts: Mapping[str, Any]) -> list[str]:
    if "unknown" in facts:
        return [f"The machine did not say what it is: {facts['unknown']}."]
    gpus = [
        f"{gpu['name']} ({gpu['capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB)"
        for gpu in facts["gpus"]
    ]
    versions = {**facts["versions"], **facts["packages"]}
    return _table(
        ("", ""),
        (
            ("device", "; ".join(gpus) or f"CPU, {facts['host']['cores']} cores"),
            ("driver", facts["driver"] or "none"),
            ("versions", ", ".join(f"{name} {known}" for name, known in versions.items() if known)),
            ("absent", ", ".join(name for name, known in versions.items() if not known) or "nothing"),
            (
                "environment",
                ", ".join(f"{k}={v}" for k, v in facts["environment"].items() if v) or "as it is",
            ),
            ("commit", facts["commit"]),
            ("date", facts["date"]),
        ),
    )


def _count(rows: Sequence[Row]) -> str:
    checks = [row["holds"] for row in rows if row["kind"] == "check"]
    return f"{sum(checks)} of {len(checks)} hold" if checks else ""


def _found(row: Row, measured: bool) -> str:
    if row["kind"] == "skipped":
        return f"{NOT_MEASURED}: {row['reason']}"
    if row["kind"] == "check":
        words = "holds" if row["holds"] else "FAILS"
        return f"{words}{'' if measured else ' on the CPU'}" + (
            f" ({row['detail']})" if row["detail"] else ""
        )
    if not measured:
        return NOT_MEASURED
    return f"{_digits(row['value'])} {row['unit']}".strip()


def _digits(value: float | str) -> str:
    """Four of them, or all of a whole number."""
    if isinstance(value, str) or value == int(value):
        return str(value) if isinstance(value, str) else str(int(value))
    return f"{value:.4g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    """What a cell of Markdown, on a terminal, may hold."""
    words = " ".join(str(text).split()).replace("|", "\\|")
    return "".join(letter if letter.isprintable() else "?" for letter in words)
