"""What a trace has to be so that Perfetto and chrome://tracing show all of it."""

from __future__ import annotations

from collections import defaultdict

ROUNDING = 2e-3  # microseconds


def check(trace):
    """Fields of every event, slices of a track within one another or apart, arrows from a slice to a slice."""
    events = trace["traceEvents"]
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    slices, starts, ends = defaultdict(list), {}, {}
    for e in events:
        assert e["ph"] in ("X", "M", "s", "f"), e
        assert (
            isinstance(e["name"], str)
            and e["name"]
            and isinstance(e["pid"], int)
            and isinstance(e["tid"], int)
        ), e
        if e["ph"] == "M":
            continue
        assert (e["pid"], e["tid"]) in named and e["pid"] in processes, e
        assert isinstance(e["ts"], float) and isinstance(e["cat"], str), e
        if e["ph"] == "X":
            assert isinstance(e["dur"], float) and e["dur"] >= 0, e
            slices[e["pid"], e["tid"]].append((e["ts"], -e["dur"], e["name"]))
        else:
            side = starts if e["ph"] == "s" else ends
            assert e["id"] not in side, e
            side[e["id"]] = e
    for track, own in slices.items():
        open_until = []
        for start, minus, name in sorted(own):
            while open_until and open_until[-1] <= start + ROUNDING:
                open_until.pop()
            assert not open_until or start - minus <= open_until[-1] + ROUNDING, (track, name, start)
            open_until.append(start - minus)
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        assert ends[number]["bp"] == "e" and start["ts"] <= ends[number]["ts"] + 1e3, number
        for e in (start, ends[number]):
            around = slices[e["pid"], e["tid"]]
            assert any(s - ROUNDING <= e["ts"] <= s - minus + ROUNDING for s, minus, _ in around), e
    return slices, starts
