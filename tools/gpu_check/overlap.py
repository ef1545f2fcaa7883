"""A step of the small overlapped case: where its host waits for the device, and what its streams do."""

from __future__ import annotations

import collections
import gzip
import json
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from tools.gpu_check.processes import ROOT
from tools.gpu_check.worker import PhaseContext

SHOWN = 25  # lines of code that wait
MARK = "spin_kernel"  # torch.cuda._sleep's, which tells a lane's stream in a trace


# Of the trace: kernels that take longer than the host takes to launch them, or there would be nothing to overlap.
LARGE = {"hidden_size": 2560, "heads": 20, "ffn_hidden_size": 6912}
LARGE_EXPERTS, LARGE_TOKENS = 1536, 4096


@contextmanager
def small_case(miniature: bool, large: bool = False) -> Iterator[Any]:
    """tools.profile_overlap's step, with all-to-alls, nodes named.

    Args:
        large: of the 27B model's width, on a GPU.
    """
    from hcmegatron.platform.distributed import process_groups
    from hcmegatron.platform.ranks import RankInfo, free_port
    from tools import profile_overlap

    config = profile_overlap.small_case()
    config.training.threads = 1
    if miniature:
        config.data.sequence_length = 16
    elif large:
        for name, value in LARGE.items():
            setattr(config.model, name, value)
        config.moe.ffn_hidden_size, config.data.sequence_length = LARGE_EXPERTS, LARGE_TOKENS
        config.training.micro_batch, config.training.global_batch = 1, config.training.global_batch // 2
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "check")
    with (
        process_groups(config, alone) as groups,
        profile_overlap.all_to_all_of_one_rank(),
        profile_overlap.named(),
    ):
        yield profile_overlap.prepared(config, groups)


def host_syncs(work: PhaseContext) -> None:
    """How often a step waits, by the line of this project or of what it calls."""
    with small_case(work.miniature) as step:
        for _ in range(2 - work.miniature):
            step()
        with waits(work.device) as places:
            step()
    work.figure("waits of the host in a step", sum(places.values()), "times")
    for place, count in places.most_common(SHOWN):
        work.figure(f"waits at {place}", count, "times")


@contextmanager
def waits(device: str) -> Iterator[collections.Counter]:
    """Counts torch's warnings of synchronisation, by the innermost line of this repository and the one that waits."""
    places: collections.Counter = collections.Counter()

    def told(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            places[line_of(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", told):
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def line_of(stack: Sequence[traceback.FrameSummary]) -> str:
    """ "hcmegatron/model/experts.py:49", with the line of a package that it is in, where it is in one. Pure."""
    frames = [frame for frame in stack if not frame.filename.endswith(("warnings.py", "mock.py"))]
    own = [
        frame
        for frame in frames
        if frame.filename.startswith(str(ROOT)) and "/site-packages/" not in frame.filename
    ]
    if not frames:
        return "an unknown place"
    last = frames[-1]
    words = f"{_short(last.filename)}:{last.lineno}"
    if own and own[-1] is not last:
        words = f"{_short(own[-1].filename)}:{own[-1].lineno}, in {words}"
    return words


def _short(filename: str) -> str:
    """Without the folders that differ between machines."""
    for start in ("/site-packages/", "/megatron/core/"):
        if start in filename:
            return filename[filename.rindex(start) :].removeprefix("/site-packages/").lstrip("/")
    return filename.removeprefix(f"{ROOT}/")


def trace(work: PhaseContext) -> None:
    """A trace of one step for Perfetto, trace.json.gz, and how busy each lane's stream is in it."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([] if work.miniature else [ProfilerActivity.CUDA])
    with made_streams(work.device) as streams, small_case(work.miniature, large=True) as step:
        step()
        with profile(activities=activities) as recorded:
            for _, stream in streams:
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(1000)
            step()
    path = work.folder / "trace.trace.json"
    recorded.export_chrome_trace(str(path))
    text = path.read_text()
    path.unlink()
    (work.folder.parent / "trace.json.gz").write_bytes(gzip.compress(text.encode()))
    events = json.loads(text)["traceEvents"]
    names = {event["name"] for event in events if event.get("cat") != "gpu_user_annotation"}
    work.check("the trace names the nodes of forward and backward", {"F dispatch", "I dispatch"} <= names)
    kernels = of_device(events)
    priorities = [priority for priority, _ in streams]
    lanes = {
        stream: f"stream of priority {priority}"
        for stream, priority in zip(marked(kernels), priorities, strict=False)
    }
    if not work.miniature:
        work.check(
            "streams of high priority have kernels in the trace",
            any(e["args"]["stream"] in lanes and MARK not in e["name"] for e in kernels),
            f"{len(lanes)} streams told by their marks, of {len(streams)} made",
        )
    for stream, (count, busy, beside) in busy_streams(kernels).items():
        name = f"{lanes.get(stream, 'a stream of usual priority')} ({stream})"
        work.figure(f"{name}: kernels", count, "kernels")
        work.figure(f"{name}: busy", 1e-3 * busy, "ms")
        work.figure(
            f"{name}: of that beside another stream's kernels", 100 * beside / busy if busy else 0.0, "%"
        )
    if work.miniature:
        work.skipped("how busy the lanes' streams are", "no GPU: nodes run one after another")


@contextmanager
def made_streams(device: str) -> Iterator[list[tuple[int, Any]]]:
    """Collects streams of high priority as they are made, with their priority."""
    found: list[tuple[int, Any]] = []
    if device == "cpu":
        yield found
        return
    usual = torch.cuda.Stream.__new__

    def new(cls: type, device: Any = None, priority: int = 0, **others: Any) -> Any:
        stream = usual(cls, device, priority, **others)
        if priority < 0:
            found.append((priority, stream))
        return stream

    with mock.patch.object(torch.cuda.Stream, "__new__", new):
        yield found


def of_device(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Kernels, in order of their start."""
    found = [e for e in events if e.get("cat") == "kernel" and "stream" in e.get("args", {})]
    return sorted(found, key=lambda event: event["ts"])


def marked(kernels: Iterable[Mapping[str, Any]]) -> list[int]:
    """Streams by the order of their marks."""
    return list(dict.fromkeys(e["args"]["stream"] for e in kernels if MARK in e["name"]))


def busy_streams(kernels: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, float, float]]:
    """By stream: kernels, microseconds in which one runs, and of those the ones beside another stream's. Pure."""
    intervals: dict[int, list[tuple[float, float]]] = collections.defaultdict(list)
    for event in kernels:
        if MARK not in event["name"]:
            intervals[event["args"]["stream"]].append((event["ts"], event["ts"] + event["dur"]))
    found = {}
    for stream, own in intervals.items():
        others = merged(span for other, spans in intervals.items() if other != stream for span in spans)
        mine = merged(own)
        found[stream] = len(own), sum(end - start for start, end in mine), common(mine, others)
    return found


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without overlaps, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def common(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Length of what two lists of merged spans share."""
    total, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total
