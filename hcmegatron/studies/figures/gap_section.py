"""What is said and drawn of the gap to the baseline, and why where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hcmegatron.report.charts import Words
from hcmegatron.studies.figures.gap_figures import PANELS, over_compute, over_tokens, over_training
from hcmegatron.studies.figures.plot import NotDrawn, Part, Plot, Style
from hcmegatron.studies.gaps import Gap, frontier
from hcmegatron.studies.power import PowerLaw, power_law
from hcmegatron.studies.results import Arm, Results
from hcmegatron.studies.trajectories import read_curves, trajectories
from hcmegatron.studies.words import last_gaps

NO_BASELINE = "the table has no run of the baseline; name another kind by --baseline"


def gap_parts(
    results: Results, gaps: Sequence[Gap], directory: Path | None, looks: Mapping[Arm, Style], level: float
) -> tuple[Part, ...]:
    """The figures over training, compute and tokens, and the power laws in words.

    Args:
        directory: of the study; None: there is the table alone.
    """
    if results.baseline is None:
        return (NotDrawn("Gaps to the baseline", NO_BASELINE),)
    laws, words = _power_laws(results, gaps, level)
    drawn = over_compute(results, gaps, laws, looks, level)
    return (
        _over_training(results, gaps, directory, looks, level),
        drawn,
        *([Words(words)] if isinstance(drawn, Plot) else []),
        over_tokens(results, gaps, looks, level),
    )


def _over_training(
    results: Results, gaps: Sequence[Gap], directory: Path | None, looks: Mapping[Arm, Style], level: float
) -> Plot | NotDrawn:
    title = "Loss gap to the baseline over training"
    if directory is None:
        return NotDrawn(title, "a table has no curves; name the study's directory")
    ends = [gap for gap in gaps if any(point.is_run for point in results.best(gap.arm, gap.place))]
    last = [next(iter(found.values())).place for found in last_gaps(results, ends).values()][-PANELS:]
    found = trajectories(results, last, read_curves(directory), level)
    if not found:
        return NotDrawn(title, f"no pair of runs has a metrics.jsonl under {directory / 'runs'}")
    return over_training(results, found, looks, level)


def _power_laws(
    results: Results, gaps: Sequence[Gap], level: float
) -> tuple[dict[Arm, PowerLaw], tuple[str, ...]]:
    """Of every arm's gap over compute, and what is said of them."""
    places = frontier(gaps, results)
    laws, words = {}, []
    for arm in results.arms[1:]:
        own = [gap for gap in gaps if gap.arm == arm and gap.place in places and gap.gap.count]
        law = power_law([gap.compute for gap in own], [gap.gap.mean for gap in own], level)
        if isinstance(law, str):
            words.append(f"{results.names[arm]}: no power law of the gap: {law}.")
            continue
        laws[arm] = law
        words.append(
            f"{results.names[arm]}: the gap goes as C^{law.exponent:.3f} ({law.low:.3f} to {law.high:.3f}), through "
            f"{len(own)} budgets; an exponent below zero is a gap that shrinks as compute grows."
        )
    return laws, tuple(words)
