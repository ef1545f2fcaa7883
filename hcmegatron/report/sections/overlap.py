"""What was computed, waited for and hidden in profiled steps: profile/summary.json (docs/profile.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hcmegatron.report.charts import Bars, Part, Section, Table, Words
from hcmegatron.report.inputs.run import Run

MOST_PATH = 40  # actions of the critical path


def overlap(runs: Sequence[Run]) -> Section:
    """Bars and tables for each run that was profiled."""
    parts: list[Part] = []
    for number, run in enumerate(runs):
        if run.profile is not None:
            parts += _of(run.profile, f": {run.name}" * (len(runs) > 1), f"-{number + 1}" * (len(runs) > 1))
    if not parts:
        parts.append(Words(("No run was profiled: hcmegatron profile writes profile/summary.json.",)))
    return Section("overlap", "Overlap", tuple(parts))


def _of(profile: Mapping[str, Any], of: str, suffix: str) -> list[Part]:
    step, simulated = (_ms(profile.get(key)) for key in ("step_ms", "simulated_step_ms"))
    steps = profile.get("steps")
    profiled = f" (steps {', '.join(map(str, steps))})" if isinstance(steps, list) else ""
    parts: list[Part] = [
        Words((f"A step took {step} ms{profiled}; simulated with the measured costs, {simulated} ms{of}.",))
    ]
    ranks = [rank for rank in _list(profile, "per_rank") if isinstance(rank.get("bubble_ms"), dict)]
    if ranks:
        parts.append(_bars(ranks, of, suffix))
    parts += filter(
        None,
        [
            _communication(profile, of),
            _lanes(ranks, of),
            _rows(
                profile,
                "actions",
                "Actions, measured beside simulated" + of,
                "action",
                "stage",
                "measured_ms",
                "simulated_ms",
            ),
            _rows(profile, "what_if", "What would help" + of, "change", "step_ms"),
            _rows(profile, "critical_path", "Critical path" + of, "action", "rank", "start_ms", "ms"),
        ],
    )
    return parts


def _bars(ranks: list[Mapping[str, Any]], of: str, suffix: str) -> Bars:
    causes = list(dict.fromkeys(cause for rank in ranks for cause in rank["bubble_ms"]))
    parts = {"computing": np.array([_number(rank.get("compute_ms")) for rank in ranks])}
    parts |= {
        f"bubble: {cause}": np.array([_number(rank["bubble_ms"].get(cause)) for rank in ranks])
        for cause in causes
    }
    bars = tuple(f"rank {rank.get('rank')}" for rank in ranks)
    return Bars(f"bubble{suffix}", f"Where a step's time goes{of}", "ms a step", bars, parts, {})


def _communication(profile: Mapping[str, Any], of: str) -> Table | None:
    found = profile.get("communication")
    kinds = found if isinstance(found, dict) else {}
    rows = [
        (
            str(kind),
            *(_ms(entry.get(key)) for key in ("hidden_ms", "exposed_ms")),
            _share(entry.get("hidden_ms"), entry.get("exposed_ms")),
            f"{_number(entry.get('bytes')) / 1e6:,.2f}",
        )
        for kind, entry in kinds.items()
        if isinstance(entry, dict)
    ]
    head = ("communication", "hidden, ms", "exposed, ms", "hidden share", "MB")
    return Table(f"Communication{of}", head, tuple(rows)) if rows else None


def _lanes(ranks: list[Mapping[str, Any]], of: str) -> Table | None:
    rows = [
        (
            f"rank {rank.get('rank')}, {lane}",
            *(_ms(entry.get(key)) for key in ("busy_ms", "hidden_ms", "exposed_ms")),
        )
        for rank in ranks
        for lane, entry in (rank.get("lanes") if isinstance(rank.get("lanes"), dict) else {}).items()
        if isinstance(entry, dict)
    ]
    return (
        Table(f"Lanes{of}", ("lane", "busy, ms", "hidden, ms", "exposed, ms"), tuple(rows)) if rows else None
    )


def _rows(profile: Mapping[str, Any], key: str, title: str, *columns: str) -> Table | None:
    found = _list(profile, key)
    rows = [
        tuple(_ms(entry.get(name)) if name.endswith("ms") else str(entry.get(name, "–")) for name in columns)
        for entry in found[:MOST_PATH]
    ]
    head = tuple(name.removesuffix("_ms") + ", ms" if name.endswith("_ms") else name for name in columns)
    note = f"The first {MOST_PATH} of {len(found)}." if len(found) > MOST_PATH else ""
    return Table(title, head, tuple(rows), note) if rows else None


def _list(profile: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = profile.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _ms(value: Any) -> str:
    number = _number(value)
    return f"{number:,.3g}" if number == number else "–"


def _share(hidden: Any, exposed: Any) -> str:
    whole = _number(hidden) + _number(exposed)
    return f"{_number(hidden) / whole:.1%}" if whole > 0 else "–"
