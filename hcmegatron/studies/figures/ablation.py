"""Which of pre, post and res the gap comes from, as mHC's Table 1 (2512.24880): what is off is fixed at 1/n, 1, I."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.connection_settings import Settings
from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Series, Style
from hcmegatron.studies.figures.words import gap_cell, last_gaps
from hcmegatron.studies.gaps import Gap
from hcmegatron.studies.results import Arm, Results

TITLE = "Ablation: which mappings of the connection are learned"
SWITCHES = ("use_res", "use_pre", "use_post")  # in the order of the paper's table


def ablation(
    results: Results,
    gaps: Sequence[Gap],
    settings: Mapping[Arm, Settings],
    styles: Mapping[Arm, Style],
    level: float,
) -> list[Table | Plot | NotDrawn]:
    """The table, and the same as a figure: a panel for every size."""
    arms = _arms(results, settings)
    if not arms:
        return [NotDrawn(TITLE, f"no kind was trained with different {', '.join(SWITCHES)}")]
    last = {size: found for size, found in last_gaps(results, gaps).items() if found.keys() & set(arms)}
    if not last:
        return [NotDrawn(TITLE, "no run has a partner of its seed among those of the baseline")]
    rows = tuple(
        (
            settings[arm]["kind"],
            *("on" if settings[arm][switch] == "true" else "off" for switch in SWITCHES),
            *(gap_cell(found.get(arm)) for found in last.values()),
        )
        for arm in arms
    )
    sizes = tuple(f"gap, size {size}" for size in last)
    table = Table(TITLE, ("kind", *(switch.removeprefix("use_") for switch in SWITCHES), *sizes), rows)
    names = tuple(_name(settings[arm]) for arm in arms)
    panels = tuple(
        Panel(
            f"size {size}",
            "loss gap, nats a token",
            "",
            tuple(
                _series(names[row], found[arm], row, styles[arm])
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


def _arms(results: Results, settings: Mapping[Arm, Settings]) -> list[Arm]:
    """Those of kinds that have switches, of which some differ; none on first, all on last."""
    able = [arm for arm in results.arms if settings[arm].keys() >= set(SWITCHES)]
    kinds = {
        settings[arm]["kind"]
        for arm in able
        if len({_state(settings[o]) for o in able if settings[o]["kind"] == settings[arm]["kind"]}) > 1
    }
    kept = [arm for arm in able if settings[arm]["kind"] in kinds]
    return sorted(
        kept, key=lambda arm: (settings[arm]["kind"], sum(_state(settings[arm])), _state(settings[arm]))
    )


def _state(settings: Settings) -> tuple[bool, ...]:
    return tuple(settings[switch] == "true" for switch in reversed(SWITCHES))


def _name(settings: Settings) -> str:
    on = [switch.removeprefix("use_") for switch in SWITCHES if settings[switch] == "true"]
    return f"{settings['kind']}: {' + '.join(on) or 'none'}"


def _series(name: str, gap: Gap, row: int, style: Style) -> Series:
    value = gap.gap
    return Series(
        name,
        np.array([value.mean]),
        np.array([float(row)]),
        style._replace(variant=0, shade=1.0),
        "points",
        np.array([value.low]),
        np.array([value.high]),
        (value.count,),
        legend=False,
    )
