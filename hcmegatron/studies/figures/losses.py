"""The losses of every arm at every place, with their gaps: the table that all figures are of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.gaps import Gap, t_interval
from hcmegatron.studies.results import Results
from hcmegatron.studies.words import interval_words, place_words, verdict


def losses(results: Results, gaps: Sequence[Gap], level: float) -> Table:
    """A row for every arm and place, runs that diverged counted."""
    by_place = {(gap.arm, gap.place): gap for gap in gaps}
    rows = []
    for arm in results.arms:
        for place in results.places(arm):
            points = results.best(arm, place)
            loss = t_interval([point.loss for point in points if point.finished], level)
            gap = by_place.get((arm, place))
            rows.append(
                (
                    results.names[arm],
                    place_words(place),
                    f"{np.mean([point.parameters for point in points]):.4g}",
                    f"{np.mean([point.flops for point in points]):.3g}",
                    f"{loss.count} of {len(points)}",
                    str(sum(point.diverged for point in points)),
                    interval_words(loss, ".4f"),
                    interval_words(gap.gap) if gap else "–",
                    interval_words(gap.ratio, ".4f") if gap else "–",
                    verdict(gap.gap) if gap else "–",
                )
            )
    head = (
        "arm",
        "place",
        "N",
        "FLOPs",
        "with a loss",
        "diverged",
        "loss",
        "gap",
        "ratio",
        "beside the baseline",
    )
    return Table(f"Held-out losses, {results.unit}", head, tuple(rows))
