"""Which of pre, post and res the gap comes from, as mHC's Table 1 (2512.24880): what is off is fixed at 1/n, 1, I."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hcmegatron.report.charts import Table
from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Style, row_series
from hcmegatron.studies.gaps import Gap
from hcmegatron.studies.results import Arm, Results
from hcmegatron.studies.words import gap_cell, last_gaps

TITLE = "Ablation: which mappings of the connection are learned"
SWITCHES = ("use_res", "use_pre", "use_post")  # in the order of the paper's table


def ablation(
    results: Results,
    gaps: Sequence[Gap],
    styles: Mapping[Arm, Style],
    level: float,
) -> list[Table | Plot | NotDrawn]:
    """The table, and the same as a figure: a panel for every size."""
    arms = _arms(results)
    if not arms:
        return [NotDrawn(TITLE, f"no kind was trained with different {', '.join(SWITCHES)}")]
    last = {size: found for size, found in last_gaps(results, gaps).items() if found.keys() & set(arms)}
    if not last:
        return [NotDrawn(TITLE, "no run has a partner of its seed among those of the baseline")]
    rows = tuple(
        (
            arm.kind,
            *("on" if arm.get(switch) == "true" else "off" for switch in SWITCHES),
            *(gap_cell(found.get(arm)) for found in last.values()),
        )
        for arm in arms
    )
    sizes = tuple(f"gap, size {size}" for size in last)
    table = Table(TITLE, ("kind", *(switch.removeprefix("use_") for switch in SWITCHES), *sizes), rows)
    names = tuple(_name(arm) for arm in arms)
    panels = tuple(
        Panel(
            f"size {size}",
            f"loss gap, {results.unit}",
            "",
            tuple(
                row_series(names[row], row, found[arm].gap, styles[arm])
                for row, arm in enumerate(arms)
                if arm in found
            ),
            reference=0,
            rows=names,
        )
        for size, found in last.items()
    )
    note = (
        f"Runs of the same seed, {level:.0%} t-intervals over seeds; below zero is better than the baseline."
    )
    return [table, Plot("ablation", TITLE, panels, note)]


def _arms(results: Results) -> list[Arm]:
    """Those of kinds that have switches, of which some differ; none on first, all on last."""
    able = [arm for arm in results.arms if {*dict(arm.settings)} >= {*SWITCHES}]
    states = {(arm.kind, _state(arm)): arm for arm in reversed(able)}  # the first of each
    kinds = Counter(kind for kind, _ in states)
    kept = [arm for (kind, _), arm in states.items() if kinds[kind] > 1]
    return sorted(kept, key=lambda arm: (arm.kind, sum(_state(arm)), _state(arm)))


def _state(arm: Arm) -> tuple[bool, ...]:
    return tuple(arm.get(switch) == "true" for switch in reversed(SWITCHES))


def _name(arm: Arm) -> str:
    on = [switch.removeprefix("use_") for switch in SWITCHES if arm.get(switch) == "true"]
    return f"{arm.kind}: {' + '.join(on) or 'none'}"
