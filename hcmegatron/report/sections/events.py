"""What happened, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hcmegatron.report.charts import Section, Table, Words
from hcmegatron.report.inputs.run import Run

MOST = 200  # rows


def events(runs: Sequence[Run]) -> Section:
    """A row for each event; of very many, the last ones of each run."""
    rows, left = [], Counter()
    for run in runs:
        left[run.name] = max(0, len(run.events) - MOST)
        rows += [
            (run.name, "–" if event.step is None else f"{event.step:,}", event.kind, event.words)
            for event in run.events[-MOST:]
        ]
    if not rows:
        return Section(
            "events", "Events", (Words(("No skipped step, restart, warning or checkpoint is on record.",)),)
        )
    kinds = Counter(row[2] for row in rows)
    said = [", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())]
    said += [f"{name}: {count:,} earlier ones are not shown." for name, count in left.items() if count]
    table = Table("Events by step", ("run", "step", "kind", "what happened"), tuple(rows))
    return Section("events", "Events", (Words(tuple(said)), table))
