"""A study's report: which sections it has, in which order, each as words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hcmegatron.report.charts import Words
from hcmegatron.studies.arm_laws import Multipliers, multipliers
from hcmegatron.studies.figures.ablation import ablation
from hcmegatron.studies.figures.expansion import expansion
from hcmegatron.studies.figures.gap_section import gap_parts
from hcmegatron.studies.figures.law_figures import multiplier_words
from hcmegatron.studies.figures.law_section import law_parts
from hcmegatron.studies.figures.losses import losses
from hcmegatron.studies.figures.plot import NotDrawn, Part
from hcmegatron.studies.figures.stress import stress, stressed
from hcmegatron.studies.figures.styles import styles
from hcmegatron.studies.gaps import Gap, frontier, paired_gaps
from hcmegatron.studies.limits import limits
from hcmegatron.studies.results import Results
from hcmegatron.studies.words import counted, interval_words, last_gaps, place_words, verdict


class StudySection(NamedTuple):
    """A heading and what stands under it."""

    name: str
    title: str
    parts: tuple[Part, ...]


def study_sections(
    results: Results, directory: Path | None, level: float, bootstraps: int
) -> list[StudySection]:
    """The sections.

    Args:
        directory: of the study, with runs/NAME; None: there is the table alone.
        level: of all intervals; bootstraps: of fits.
    """
    looks = styles(results)
    gaps = paired_gaps(results, level)
    places = frontier(gaps, results)
    shares = multipliers(results, places, bootstraps, level)
    found = [
        StudySection("losses", "Losses", (losses(results, gaps, level),)),
        StudySection("gap", "Gap to the baseline", gap_parts(results, gaps, directory, looks, level)),
        StudySection("ablation", "Ablation", tuple(ablation(results, gaps, looks, level))),
        StudySection("expansion", "Expansion", tuple(expansion(results, gaps, looks, level))),
        StudySection(
            "stress", "Learning rates", tuple(stress(results, stressed(results, level), looks, level))
        ),
        StudySection("laws", "Laws", law_parts(results, shares, looks, bootstraps, level)),
    ]
    missing = [part.title for section in found for part in section.parts if isinstance(part, NotDrawn)]
    said = Words(limits(results, gaps, missing, level))
    summary = StudySection("summary", "Summary", (Words(_summary(results, gaps, shares, level)),))
    return [summary, *found, StudySection("limits", "What the study does not show", (said,))]


def _summary(
    results: Results, gaps: Sequence[Gap], shares: Multipliers | str, level: float
) -> tuple[str, ...]:
    runs = {point.run for point in results.points}
    lost = {point.run for point in results.points if point.diverged}
    base = "none in the table" if results.baseline is None else results.names[results.baseline]
    said = [
        f"{counted(len(runs), 'run')}, {counted(len(results.arms), 'arm')}, {counted(len(results.sizes), 'size')}; "
        f"{len(lost)} diverged. Baseline: {base}.",
        "A gap is the loss of a run less that of the baseline's run of the same seed, and so of the same data in the "
        f"same order, at the same place and each one's best learning rate. Their intervals are {level:.0%} t-intervals "
        "over seeds.",
    ]
    if isinstance(shares, Multipliers):
        said += [
            f"{results.names[arm]}: the baseline needs {multiplier_words(factor)} times its compute for the same loss"
            + (", not told apart from once." if factor.low <= 1 <= factor.high else ".")
            for arm, factor in shares.factors.items()
        ]
    for found in list(last_gaps(results, gaps).values())[-1:]:
        said += [
            f"{results.names[arm]} at {place_words(gap.place)}: {interval_words(gap.gap)} {results.unit}, "
            f"{verdict(gap.gap)}, {counted(gap.gap.count, 'pair')} of runs, {gap.diverged} diverged."
            for arm, gap in found.items()
        ]
    return tuple(said)
