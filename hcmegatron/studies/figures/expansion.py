"""The gap over n, of static and dynamic kinds, with and without tanh: HC's comparisons (2409.19606, Tables 1 and 2) and
FC's (2503.14125)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Series, Style, lost_series
from hcmegatron.studies.gaps import Gap
from hcmegatron.studies.results import Arm, Results
from hcmegatron.studies.words import gap_cell, last_gaps

TITLE = "Expansion: the loss gap over n"
Line = tuple[str, ...]  # kind, then the settings in which lines of it differ


def expansion(
    results: Results,
    gaps: Sequence[Gap],
    styles: Mapping[Arm, Style],
    level: float,
) -> list[Table | Plot | NotDrawn]:
    """The table, and a figure with a panel for every size."""
    lines = _lines(results)
    if not lines:
        return [NotDrawn(TITLE, "no kind was trained with different n")]
    arms = {arm for line in lines.values() for arm in line.values()}
    last = {size: found for size, found in last_gaps(results, gaps).items() if found.keys() & arms}
    if not last:
        return [NotDrawn(TITLE, "no run has a partner of its seed among those of the baseline")]
    widths = sorted({n for line in lines.values() for n in line})
    rows = tuple(
        (name, size, *(gap_cell(found.get(line[n])) if n in line else "–" for n in widths))
        for name, line in lines.items()
        for size, found in last.items()
    )
    table = Table(TITLE, ("kind", "size", *(f"gap, n = {n}" for n in widths)), rows)
    panels = tuple(
        Panel(
            f"size {size}",
            "n: streams, of FC fractions",
            f"loss gap, {results.unit}",
            tuple(
                series
                for number, (name, line) in enumerate(lines.items())
                for series in _series(name, line, found, _style(styles, line, list(lines), number))
            ),
            "x",
            0,
            tuple((float(n), str(n)) for n in widths),
            dodge=True,
        )
        for size, found in last.items()
    )
    note = (
        f"Runs of the same seed, {level:.0%} t-intervals over seeds; below zero is better than the baseline."
    )
    return [table, Plot("expansion", TITLE, panels, note)]


def _lines(results: Results) -> dict[str, dict[int, Arm]]:
    """Arms by n, of every kind and other settings that have several n."""
    found: dict[tuple[tuple[str, str], ...], dict[int, Arm]] = {}
    for arm in results.arms:
        if arm.get("n"):
            others = (("kind", arm.kind), *((name, value) for name, value in arm.settings if name != "n"))
            found.setdefault(others, {}).setdefault(int(arm.get("n")), arm)
    several = {key: dict(sorted(line.items())) for key, line in found.items() if len(line) > 1}
    return {_name(key, list(several)): line for key, line in several.items()}


def _name(key: tuple[tuple[str, str], ...], keys: Sequence[tuple[tuple[str, str], ...]]) -> str:
    """The kind, and those settings in which lines of the kind differ."""
    own = dict(key)
    alike = [dict(other) for other in keys if dict(other)["kind"] == own["kind"]]
    apart = [f"{name}={value}" for name, value in key if len({other.get(name) for other in alike}) > 1]
    return " ".join([own["kind"], *apart])


def _style(styles: Mapping[Arm, Style], line: Mapping[int, Arm], names: Sequence[str], number: int) -> Style:
    kind = names[number].split()[0]
    variant = [name for name in names if name.split()[0] == kind].index(names[number])
    return styles[next(iter(line.values()))]._replace(variant=variant + number, shade=1.0)


def _series(name: str, line: Mapping[int, Arm], found: Mapping[Arm, Gap], style: Style) -> list[Series]:
    own = {n: found[arm] for n, arm in line.items() if arm in found}
    paired = {n: gap.gap for n, gap in own.items() if gap.gap.count}
    x, lost = np.array(list(own), float), np.array([gap.diverged for gap in own.values()])
    means, lows, highs = (np.array([value[part] for value in paired.values()]) for part in range(3))
    counts = tuple(value.count for value in paired.values())
    return [
        Series(name, np.array(list(paired), float), means, style, "marked", lows, highs, counts),
        *([lost_series(name, x, lost, style)] if lost.any() else []),
    ]
