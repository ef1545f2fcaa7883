"""A schedule for the terminal: one line per rank, every action a letter and its micro-batch, as long as it
takes."""

from schedules.actions import Kind
from schedules.draw.boxes import action_boxes
from schedules.timeline import Simulation

COLOURS = {Kind.F: "30;48;5;222", Kind.I: "30;48;5;151", Kind.B: "97;48;5;65", Kind.W: "97;48;5;24"}


def to_text(simulation: Simulation, columns: int = 120, colour: bool = False) -> str:
    """Lines of at most ``columns`` characters. The halves of a pair that run at the same time are drawn
    one after the other, each half as long as the pair."""
    span = simulation.makespan or 1.0
    label = len(str(simulation.schedule.ranks - 1)) + 1
    scale = max(1, columns - label) / span
    lines = []
    for rank, timeline in enumerate(simulation.timeline):
        line, at = "", 0
        for timed in timeline:
            for box in action_boxes(timed):
                start, end = box.start, box.end
                if box.lane:
                    middle = (timed.start + timed.end) / 2
                    start, end = (timed.start, middle) if box.kind is Kind.F else (middle, timed.end)
                first, last = round(start * scale), round(end * scale)
                line += " " * (first - at)
                name = f"{box.kind.value}{box.microbatch}"
                if len(name) > last - first:  # a cut number would be another one
                    name = box.kind.value[: last - first]
                cell = name.ljust(last - first, "-")
                line += f"\x1b[{COLOURS[box.kind]}m{cell}\x1b[0m" if colour else cell
                at = last
        lines.append(f"{rank:>{label - 1}} {line}")
    return "\n".join(lines) + "\n"
