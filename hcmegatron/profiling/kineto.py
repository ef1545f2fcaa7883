"""torch.profiler (Kineto) around a step: what every thread of the host and every stream of the device did."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from hcmegatron.profiling.trace import HostEvent
from schedules.runtime.gpu import GPU

ANCHOR = "hcmegatron clock"  # an annotation, at a time that is known on the host's clock
COLLECTIVES = ("gloo:", "nccl:")  # spans from their beginning to their end, whatever the host does meanwhile
# What reading a trace raises that was cut off, as by a full $TMPDIR, where torch.profiler writes it first.
DAMAGED = (gzip.BadGzipFile, ValueError, KeyError, TypeError, EOFError, zlib.error, RuntimeError)
KEPT = (
    "cpu_op",
    "user_annotation",
    "gpu_user_annotation",
    "cuda_runtime",
    "kernel",
    "gpu_memcpy",
    "gpu_memset",
)


class Kineto:
    """One step as torch.profiler sees it.

    Attributes:
        anchor: on the host's monotonic clock, when the annotation ANCHOR began.
    """

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU.present() else [])]
        self.profiler = profile(activities=activities)
        self.anchor = 0.0

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around the step, under the name that other tools know steps by."""
        with self.profiler:
            self.anchor = time.monotonic()
            with record_function(ANCHOR):
                pass
            with record_function(f"ProfilerStep#{step}"):
                yield

    def write(self, path: Path) -> list[HostEvent]:
        """The trace as torch.profiler writes it, compressed; and its events on the host's clock.

        Raises:
            OSError: it cannot be written; one of DAMAGED: what was written is no trace.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(path))
        with gzip.open(path) as file:
            return host_events(json.load(file), self.anchor)


def host_events(trace: dict[str, Any], anchor: float) -> list[HostEvent]:
    """Complete events in seconds, where the annotation ANCHOR begins at `anchor`. Pure."""
    complete = [
        event for event in trace["traceEvents"] if event.get("ph") == "X" and event.get("cat") in KEPT
    ]
    (start,) = (
        event["ts"] for event in complete if event["name"] == ANCHOR and event["cat"] == "user_annotation"
    )
    found = []
    for event in complete:
        begin = anchor + 1e-6 * (event["ts"] - start)
        on_device = "stream" in event.get("args", {})
        track = f"stream {event['args']['stream']}" if on_device else f"host thread {event['tid']}"
        if not on_device and event["name"].startswith(COLLECTIVES):
            track = "begun by the host"
        if event["cat"] == "gpu_user_annotation":
            track += ", annotations"
        found.append(HostEvent(event["name"], event["cat"], track, begin, begin + 1e-6 * event["dur"]))
    return found
