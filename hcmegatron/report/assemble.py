"""A report of runs: which sections it has, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from hcmegatron.report.charts import Section
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.comparison import comparison
from hcmegatron.report.sections.configuration import differences, environment
from hcmegatron.report.sections.diagnostics import diagnostics
from hcmegatron.report.sections.events import events
from hcmegatron.report.sections.memory import memory
from hcmegatron.report.sections.overlap import overlap
from hcmegatron.report.sections.schedule import schedule
from hcmegatron.report.sections.summary import summary
from hcmegatron.report.sections.training import training


def sections(runs: Sequence[Run], compare: bool = False) -> list[Section]:
    """The sections.

    Args:
        compare: whether the gap to the first run is one of them.
    """
    return [
        summary(runs),
        differences(runs),
        training(runs),
        *([comparison(runs)] if compare else []),
        memory(runs),
        schedule(runs),
        diagnostics(runs),
        overlap(runs),
        events(runs),
        environment(runs),
    ]


def title(runs: Sequence[Run]) -> str:
    """Of the page."""
    names = [run.name for run in runs]
    return "Run " + names[0] if len(names) == 1 else "Runs " + ", ".join(names)
