"""What the runtime assumes of the driver: which calls wait for a kernel that spins, and which streams.

A receive that is posted is a kernel that spins until its message comes. Here one spins for a set time, so that nothing
hangs whatever the driver does: a call that waits takes as long as the kernel still spins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from tools.gpu_check.parents import LOADING, QUEUES
from tools.gpu_check.worker import PhaseContext

SPIN = 0.25  # seconds


def calls(work: PhaseContext) -> None:
    """Host milliseconds of each call beside a spinning kernel, and whether it waits for it."""
    loading = os.environ[LOADING].lower()
    with work.turn():
        for name, call in host_calls(work.device).items():
            seconds, waited = beside_spinning(call, work.device)
            what = f"{name}, modules loaded {loading}"
            work.figure(what, "waits" if waited else "does not wait")
            work.figure(f"{what}: host", 1e3 * seconds, "ms")


def host_calls(device: str) -> dict[str, Callable[[], object]]:
    """What may happen for the first time in a step, and has not in this process yet. None is a kernel that torch
    compiles when it is first called, as most of torch.special's: that takes the host as long as waiting would."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from tools.gpu_check.kernels import fresh

    x = torch.randn(1 << (20 if device == "cuda" else 10), device=device)
    m = torch.randn(64, 64, device=device, dtype=torch.bfloat16)
    q = torch.randn(2, 4, 64, 64, device=device, dtype=torch.bfloat16)
    x + 1
    if device == "cuda":
        spin(torch.cuda.Stream(), 0.01)
        torch.cuda.synchronize()
        fresh.warmup(x, n=1024, grid=(1,))  # compiled, and not loaded
    pinned = {"pin_memory": True} if device == "cuda" else {}
    return {
        "a kernel that has run (control)": lambda: x + 1,
        "first launch of a kernel": lambda: torch.hypot(x, x),
        "first launch of another kernel": lambda: torch.logit(x),
        "first matrix product": lambda: m @ m,
        "first attention": lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True),
        "first launch of a Triton kernel": lambda: fresh[(1,)](x, n=1024),
        "allocation of 1 GiB": lambda: torch.empty(
            1 << (30 if pinned else 10), dtype=torch.uint8, device=device
        ),
        "allocation of 64 MiB, pinned": lambda: torch.empty(1 << 26, dtype=torch.uint8, **pinned),
        "copy of 32 KiB to the device": lambda: torch.zeros(4096, dtype=torch.int64).to(
            device, non_blocking=True
        ),
        "copy of 1 MiB to the device": lambda: torch.zeros(1 << 17, dtype=torch.int64).to(
            device, non_blocking=True
        ),
        "copy of 32 KiB from pinned memory": lambda: torch.zeros(4096, dtype=torch.int64, **pinned).to(
            device, non_blocking=True
        ),
        "memory given back": torch.cuda.empty_cache if pinned else lambda: None,
    }


def beside_spinning(call: Callable[[], object], device: str) -> tuple[float, bool]:
    """Host seconds of a call while a kernel spins on another stream, and whether that was over when the call came back:
    a slow call need not have waited. On the CPU nothing spins."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start, False
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    spin(stream)
    spun = stream.record_event()
    time.sleep(0.01)
    start = time.perf_counter()
    call()
    seconds, waited = time.perf_counter() - start, spun.query()
    torch.cuda.synchronize()
    return seconds, waited


def spin(stream: torch.cuda.Stream, seconds: float = SPIN) -> None:
    """Occupy a stream."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(seconds * 1.7e9))  # clock cycles: longer on a slower clock


def held_up(work: PhaseContext) -> None:
    """One stream has a spinning kernel and another one behind it; 30 others, and the default one, have one each."""
    value = os.environ[QUEUES] or "unset"
    if not os.environ[QUEUES]:
        del os.environ[QUEUES]
    with work.turn():
        for priority in (0, -1):
            held, default = _held(work.device, priority)
            name = f"{QUEUES} {value}, priority {priority}"
            work.figure(f"{name}: streams held up behind a spinning one", held, "of 30")
            work.figure(f"{name}: the default stream is held up", "yes" if default else "no")
            work.figure(f"{name}: a spinning receive stalls others", "yes" if held or default else "no")


def _held(device: str, priority: int) -> tuple[int, bool]:
    if device == "cpu":
        return 0, False
    x = torch.zeros(1, device="cuda")
    streams = [torch.cuda.Stream(priority=priority) for _ in range(31)]
    for stream in streams:
        with torch.cuda.stream(stream):
            x + 1
    torch.cuda.synchronize()
    spin(streams[0])
    with torch.cuda.stream(streams[0]):
        x + 1
        streams[0].record_event()
    events = []
    for stream in streams[1:]:
        with torch.cuda.stream(stream):
            x + 1
            events.append(stream.record_event())
    default = torch.cuda.Event()
    x + 1
    default.record()
    time.sleep(0.3 * SPIN)
    held = sum(not event.query() for event in events), not default.query()
    torch.cuda.synchronize()
    return held
