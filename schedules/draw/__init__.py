"""Pictures of a simulated schedule: SVG for papers, text for terminals, a trace for Perfetto."""

from schedules.draw.svg import to_svg
from schedules.draw.text import to_text
from schedules.draw.trace import to_trace

__all__ = ["to_svg", "to_text", "to_trace"]
