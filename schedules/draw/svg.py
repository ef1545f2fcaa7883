"""A schedule as SVG, after the figure of the DualPipe paper: one row per rank, time to the right, the number
of the micro-batch in every box, overlapped pairs framed. The kinds differ in lightness, so that the picture
survives printing in grey: F is lightest, then I, B, W. A rank's later chunks (or the second direction) are
darker."""

from __future__ import annotations

from schedules.actions import Kind
from schedules.draw.boxes import Box, action_boxes, chunk_of
from schedules.timeline import Simulation

WIDTH, LEFT, RIGHT, TOP, ROW, GAP = 1000.0, 58.0, 10.0, 52.0, 24.0, 4.0
DIGIT = 0.58  # width of a digit, in font sizes
# Lightness falls from F's light to W's dark without two colours sharing a grey.
LIGHT = {Kind.F: "#fff4cf", Kind.I: "#97c9b5", Kind.B: "#559e7b", Kind.W: "#30528a"}
DARK = {Kind.F: "#fbdc7c", Kind.I: "#74b39b", Kind.B: "#2f7a55", Kind.W: "#14284a"}
NAMES = {Kind.F: "forward", Kind.B: "full backward", Kind.I: "input gradient", Kind.W: "weight gradient"}
KINDS = (Kind.F, Kind.I, Kind.B, Kind.W)


def to_svg(simulation: Simulation) -> str:
    """The picture as a string; 1000 units wide, for a page's width."""
    schedule = simulation.schedule
    span = simulation.makespan or 1.0
    scale = (WIDTH - LEFT - RIGHT) / span
    chunk = chunk_of(schedule.placement)
    chunks = max(chunk) + 1
    height = TOP + schedule.ranks * (ROW + GAP) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" '
        'font-family="Helvetica,Arial,sans-serif" font-size="11">',
        _style(chunks),
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="#fff"/>',
        *_legend(simulation, chunks),
    ]
    for rank, timeline in enumerate(simulation.timeline):
        y = TOP + rank * (ROW + GAP)
        out.append(f'<text x="{LEFT - 6:g}" y="{y + ROW / 2 + 4:g}" text-anchor="end">rank {rank}</text>')
        out.append(f'<path class="idle" d="M{LEFT:g} {y:g}h{_n(span * scale)}v{ROW:g}H{LEFT:g}z"/>')
        shapes: dict[str, list[str]] = {}
        labels: dict[tuple[str, str], list[str]] = {}
        frames = []
        for timed in timeline:
            for box in action_boxes(timed):
                style = f"{box.kind.value}{chunk[box.stage]}"
                x, width = LEFT + box.start * scale, (box.end - box.start) * scale
                top = y + (ROW / 2 if box.lane == 2 else 0)
                tall = ROW if box.lane == 0 else ROW / 2
                shapes.setdefault(style, []).append(
                    f"M{_n(x)} {_n(top)}h{_n(width)}v{_n(tall)}h-{_n(width)}z"
                )
                if label := _label(box, x, width, top, tall):
                    ink = "d" if _dark(box.kind, chunk[box.stage], chunks) else "l"
                    labels.setdefault((ink, label[0]), []).append(label[1])
            if timed.action.kind is Kind.FB:
                x, width = LEFT + timed.start * scale, (timed.end - timed.start) * scale
                frames.append(f"M{_n(x)} {_n(y)}h{_n(width)}v{ROW:g}h-{_n(width)}z")
        out += [f'<path class="{style}" d="{"".join(paths)}"/>' for style, paths in shapes.items()]
        if frames:
            out.append(f'<path class="pair" d="{"".join(frames)}"/>')
        out += [
            f'<g class="{ink}" font-size="{size}">{"".join(texts)}</g>'
            for (ink, size), texts in labels.items()
        ]
    out += _axis(simulation, scale)
    return "\n".join(out) + "\n</svg>\n"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _mix(kind: Kind, chunk: int, chunks: int) -> str:
    """Between the light and the dark colour of the kind."""
    part = chunk / (chunks - 1) if chunks > 1 else 0.0
    light, dark = LIGHT[kind], DARK[kind]
    channels = [
        round(int(light[i : i + 2], 16) * (1 - part) + int(dark[i : i + 2], 16) * part) for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _dark(kind: Kind, chunk: int, chunks: int) -> bool:
    """Whether white reads better on it than black."""
    return kind is Kind.W or (kind is Kind.B and chunk > (chunks - 1) / 2)


def _style(chunks: int) -> str:
    rules = [f".{kind.value}{c}{{fill:{_mix(kind, c, chunks)}}}" for kind in KINDS for c in range(chunks)]
    return (
        "<style>path{stroke:#444;stroke-width:.4}"
        + "".join(rules)
        + ".idle{fill:#f4f4f4;stroke:none}.pair{fill:none;stroke:#000;stroke-width:1.6}"
        ".l,.d{text-anchor:middle}.d{fill:#fff}</style>"
    )


def _label(box: Box, x: float, width: float, top: float, tall: float) -> tuple[str, str] | None:
    """(font size, text element), upright, else turned, else None where the number would not fit legibly."""
    number = str(box.microbatch)
    upright = min(11.0, tall * 0.7, (width - 3) / (DIGIT * len(number)))
    turned = min(9.0, width - 0.5, (tall - 2) / (DIGIT * len(number)))
    size = upright if upright >= 6 else turned
    if size < 5:
        return None
    size = int(size * 2) / 2  # few sizes, so that numbers can share a group
    x, y = x + width / 2, top + tall / 2
    if upright >= 6:
        return f"{size:g}", f'<text x="{_n(x)}" y="{_n(y + size * 0.36)}">{number}</text>'
    place = f"translate({_n(x + size * 0.36)} {_n(y)})rotate(-90)"
    return f"{size:g}", f'<text transform="{place}">{number}</text>'


def _legend(simulation: Simulation, chunks: int) -> list[str]:
    schedule = simulation.schedule
    title = (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.microbatches} micro-batches, "
        f"makespan {simulation.makespan:g}, bubble {simulation.bubble_fraction:.1%}"
    )
    out = [f'<text x="{LEFT:g}" y="18" font-size="14" font-weight="bold">{title}</text>']
    x = LEFT
    used = {part.kind for actions in schedule.actions for action in actions for part in action.parts}
    for kind in KINDS:
        if kind not in used:
            continue
        for c in range(chunks):
            out.append(f'<path class="{kind.value}{c}" d="M{x:g} 29h14v13h-14z"/>')
            x += 14
        text = f"{kind.value} {NAMES[kind]}"
        out.append(f'<text x="{x + 5:g}" y="40">{text}</text>')
        x += 5 + 6.3 * len(text) + 14
    if any(action.kind is Kind.FB for actions in schedule.actions for action in actions):
        out.append(
            f'<path class="pair" d="M{x:g} 29h28v13h-28z"/><text x="{x + 34:g}" y="40">overlapped</text>'
        )
        x += 110
    if chunks > 1:
        what = "second direction" if len(schedule.placement.paths) > 1 else "later stages of the rank"
        out.append(f'<text x="{x:g}" y="40">darker: {what}</text>')
    return out


def _axis(simulation: Simulation, scale: float) -> list[str]:
    span = simulation.makespan or 1.0
    y = TOP + simulation.schedule.ranks * (ROW + GAP) + 4
    step = 10.0 ** len(str(int(span))) / 100
    while span / step > 16:
        step *= 5 if str(step)[0] == "2" else 2
    out = [f'<path fill="none" d="M{LEFT:g} {y:g}h{_n(span * scale)}"/>']
    ticks = int(span / step + 1e-9)
    for i in range(ticks + 1):
        x = LEFT + i * step * scale
        anchor = "end" if i == ticks and span * scale - i * step * scale < 12 else "middle"
        text = f'<text x="{_n(x)}" y="{y + 16:g}" text-anchor="{anchor}">{i * step:g}</text>'
        out.append(f'<path d="M{_n(x)} {y:g}v4"/>{text}')
    out.append(f'<text x="{LEFT - 14:g}" y="{y + 16:g}" text-anchor="end">time</text>')
    return out
