"""Memory over a step as SVG: what every pipeline rank holds, and what a GPU has. Needs no plotting library."""

from __future__ import annotations

from xml.sax.saxutils import escape

from hcmegatron.planner.machines import GIB
from hcmegatron.planner.plan import Plan

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000.0, 420.0, 56.0, 90.0, 40.0, 40.0
MOST_POINTS = 4000  # of a rank's line


def to_svg(plan: Plan) -> str:
    """The picture. Where the schedule's steady state is long, only as much of it as was simulated."""
    span = plan.time.simulation.makespan or 1.0
    top = 1.05 * max(plan.peak, plan.layout.machine.memory) / GIB
    across, up = (WIDTH - LEFT - RIGHT) / span, (HEIGHT - TOP - BOTTOM) / top

    def x(time: float) -> str:
        return f"{LEFT + time * across:.1f}"

    def y(size: float) -> str:
        return f"{HEIGHT - BOTTOM - size / GIB * up:.1f}"

    room = y(plan.layout.machine.memory)
    ranks = len(plan.memory)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        'font-family="Helvetica,Arial,sans-serif" font-size="11">',
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" fill="#fff"/>',
        f'<text x="{LEFT:g}" y="20" font-size="14" font-weight="bold">GiB over a step by pipeline rank: '
        f"{plan.config.parallel.schedule}, {plan.layout.gpus} x {escape(plan.layout.machine.name)}, most "
        f"{plan.peak / GIB:.1f}</text>",
        f'<path d="M{LEFT:g} {room}H{WIDTH - RIGHT:g}" stroke="#b00020" stroke-dasharray="6 4" fill="none"/>',
        f'<text x="{WIDTH - RIGHT + 4:g}" y="{room}" fill="#b00020">{plan.layout.machine.memory_gib:g} GiB</text>',
    ]
    for rank, memory in enumerate(plan.memory):
        loose = memory.peak.total() - sum(memory.top.held)  # resident, and fragmentation as at the peak
        step = max(1, len(memory.curve) // MOST_POINTS)
        moments = [m for i, m in enumerate(memory.curve) if i % step == 0 or m is memory.top]
        points = [f"M{x(0)} {y(loose)}"] + [f"H{x(m.time)}V{y(loose + sum(m.held))}" for m in moments]
        colour = f"hsl({200 + 120 * rank / max(1, ranks):.0f} 60% {30 + 35 * rank / max(1, ranks):.0f}%)"
        out.append(f'<path d="{"".join(points)}" fill="none" stroke="{colour}"/>')
        out.append(
            f'<circle cx="{x(memory.top.time)}" cy="{y(loose + sum(memory.top.held))}" r="3" fill="{colour}">'
            f"<title>rank {rank}: {memory.peak.total() / GIB:.2f} GiB during {memory.action}</title></circle>"
        )
        if ranks <= 24:
            place = TOP + 12 + 14 * rank
            out.append(
                f'<text x="{WIDTH - RIGHT + 4:g}" y="{place + 20:g}" fill="{colour}">rank {rank}</text>'
            )
    bottom = HEIGHT - BOTTOM
    out.append(f'<path d="M{LEFT:g} {TOP:g}V{bottom:g}H{WIDTH - RIGHT:g}" fill="none" stroke="#444"/>')
    for i in range(6):
        size, time = top * i / 5, span * i / 5
        out.append(f'<text x="{LEFT - 6:g}" y="{y(size * GIB)}" text-anchor="end">{size:.0f}</text>')
        out.append(f'<text x="{x(time)}" y="{bottom + 16:g}" text-anchor="middle">{time:.2f} s</text>')
    return "\n".join(out) + "\n</svg>\n"
