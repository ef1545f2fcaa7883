"""A schedule generated, validated and simulated, and its figures as a table row and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schedules.cost_config import Settings, candidates
from schedules.memory import channel_buffers, memory_over_time, peaks
from schedules.receives import most_ahead, receive_leads
from schedules.schedule import Schedule
from schedules.simulate import simulate
from schedules.timeline import Simulation
from schedules.validate import validate

COLUMNS = ("schedule", "makespan", "bubble", "hops cost", "activations", "parameters", "peak bytes")


@dataclass(frozen=True)
class ScheduleReport:
    """``free`` is the same schedule and runtime on links that take no time."""

    simulation: Simulation
    free: Simulation

    @property
    def hops_cost(self) -> float:
        """What the hops add to the makespan, as a part of what it is without them."""
        return self.simulation.makespan / self.free.makespan - 1 if self.free.makespan else 0.0

    @property
    def parameter_copies(self) -> int:
        return len(self.simulation.schedule.placement.paths)

    @property
    def activations(self) -> float:
        """The most activations on any rank, in P-ths of the model (of equal stages) for one micro-batch."""
        schedule = self.simulation.schedule
        chunks = max(peak.chunks for peak in peaks(self.simulation))
        return chunks * schedule.ranks / schedule.placement.model_stages

    def row(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        simulation = self.simulation
        return (
            simulation.schedule.name,
            f"{simulation.makespan:.6g}",
            f"{simulation.bubble_fraction:.1%}",
            f"{self.hops_cost:+.1%}",
            f"{self.activations:g}",
            f"{self.parameter_copies}x",
            f"{max(peak.bytes for peak in peaks(simulation)):.6g}",
        )

    def as_json(self) -> dict[str, Any]:
        simulation = self.simulation
        schedule = simulation.schedule
        return {
            "schedule": schedule.name,
            "ranks": schedule.ranks,
            "microbatches": schedule.microbatches,
            "stages": schedule.placement.model_stages,
            "makespan": simulation.makespan,
            "makespan_with_free_links": self.free.makespan,
            "bubble_fraction": simulation.bubble_fraction,
            "lead": simulation.costs.lead,
            "sending": "early" if simulation.costs.early else "lockstep",
            "busy_per_rank": simulation.busy,
            "bubble_per_rank": simulation.bubble,
            "exposed_communication_per_rank": simulation.exposed,
            "hidden_communication_per_rank": simulation.hidden,
            "parameter_copies": self.parameter_copies,
            "peak_per_rank": [peak._asdict() for peak in peaks(simulation)],
            "bytes_over_time_per_rank": memory_over_time(simulation),
            "receives_worth_posting": {
                f"{source}>{target}": count for (source, target), count in channel_buffers(simulation).items()
            },
            "receives_posted_ahead_on_gpus": {  # actions
                f"{source}>{target}": lead
                for (source, target), lead in most_ahead(receive_leads(simulation)).items()
            },
            "critical_path": [
                {"rank": step.rank, "action": str(step.action), "end": step.end, "hop": step.hop}
                for step in simulation.critical_path()
            ],
            "actions_per_rank": [[str(action) for action in actions] for actions in schedule.actions],
        }


def make_report(schedule: Schedule, settings: Settings) -> ScheduleReport:
    """Validate, then simulate with the settings' costs; with the lead that ends first, where that is left
    open.

    ValueError for an invalid schedule (InvalidSchedule) and for costs that cannot be used.
    """
    validate(schedule)
    best = min(
        (simulate(schedule, costs) for costs in candidates(schedule, settings)), key=lambda s: s.makespan
    )
    return ScheduleReport(best, simulate(schedule, best.costs.with_free_links()))


def report_table(reports: list[ScheduleReport], unfit: list[tuple[str, str]], sized: bool) -> str:
    """Aligned columns; schedules that cannot take the sizes follow with the reason. Peak bytes only where a
    size was given."""
    columns = len(COLUMNS) if sized else len(COLUMNS) - 1
    rows = [COLUMNS[:columns], *(entry.row()[:columns] for entry in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    lines += [f"{name.ljust(widths[0])}  {reason}" for name, reason in unfit]
    return "\n".join(lines) + "\n"
