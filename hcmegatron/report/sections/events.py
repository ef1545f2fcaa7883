"""What happened, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hcmegatron.report.charts import Section, Table, Words
from hcmegatron.report.inputs.run import Run

MOST = 200  # warnings of a run


def events(runs: Sequence[Run]) -> Section:
    """A row for each event; of very many warnings, the last ones of each run."""
    rows, left = [], Counter()
    for run in runs:
        warnings = [number for number, event in enumerate(run.events) if event.kind == "warning"]
        left_out = set(warnings[:-MOST])
        left[run.name] = len(left_out)
        rows += [
            (run.name, "–" if event.step is None else f"{event.step:,}", event.kind, event.words)
            for number, event in enumerate(run.events)
            if number not in left_out
        ]
    if not rows:
        return Section(
            "events", "Events", (Words(("No skipped step, restart, warning or checkpoint is on record.",)),)
        )
    kinds = Counter(row[2] for row in rows)
    said = [", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())]
    said += [f"{name}: {count:,} earlier warnings are not shown." for name, count in left.items() if count]
    table = Table("Events by step", ("run", "step", "kind", "what happened"), tuple(rows))
    return Section("events", "Events", (Words(tuple(said)), table))
