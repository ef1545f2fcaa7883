"""Phases that misbehave, to be run in place of the real ones. They import nothing that takes time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tools.gpu_check.worker import Child, PhaseContext


def tell(work: PhaseContext) -> None:
    """A machine; with a GPU where the test says so."""
    gpu = {"name": "a GPU", "capability": "sm_90", "multiprocessors": 132, "memory_bytes": 1 << 30}
    gpus = [gpu] * int(os.environ.get("GPUS_OF_TEST", "0"))
    work.facts(
        {
            "miniature": not gpus,
            "date": "2026-11-26 10:00 UTC",
            "host": {"cores": 2},
            "gpus": gpus,
            "driver": None,
            "nccl": None,
            "versions": {"torch": "2.13.0"},
            "packages": {"triton": "3.7.1"},
            "commit": os.environ.get("COMMIT_OF_TEST", "abc"),
            "environment": {},
        }
    )


def tell_late(work: PhaseContext) -> None:
    """After more than the second that it has."""
    time.sleep(1.5)
    tell(work)


def fine(work: PhaseContext) -> None:
    assert work.gpus == int(os.environ.get("GPUS_OF_TEST", "0")) and work.miniature == (work.gpus == 0)
    assert work.device == ("cuda" if work.gpus else "cpu")
    work.figure("speed", 3.25, "GB/s")
    work.check("two and two", True, "four")


def wrong(work: PhaseContext) -> None:
    work.check("two and two", False, "five")


def raises(work: PhaseContext) -> None:
    work.figure("before", 1)
    raise ValueError("no more numbers")


def dies(work: PhaseContext) -> None:
    work.figure("before", 1)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(work: PhaseContext) -> None:
    """With a child, both deaf to SIGTERM, and output that never ends."""
    work.figure("before", 1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x' * 9999); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", deaf])
    work.figure("child", child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def babbles(work: PhaseContext) -> None:
    """What is no row among the rows: torn, not JSON, not UTF-8, of no kind, without a value, endless."""
    work.figure("before", float("nan"), "|\n\x1b[2J")
    with open(work.rows, "ab") as rows:
        rows.write(
            b'{"kind": "figure", "what": \n\xff\xfe\0\n[1, 2]\n{"kind": "x"}\n{"kind": "figure"}\n'
            + b"9" * 5000
        )
    os.write(1, b"\xff\0garbage" * 1000)


def full(work: PhaseContext) -> None:
    """The disk is, from the second row on."""
    work.figure("before", 1)
    work.rows = type(work.rows)("/dev/full")
    work.figure("after", 2)


def slow(work: PhaseContext) -> None:
    work.figure("process", os.getpid())
    time.sleep(60)


def children(work: PhaseContext) -> None:
    """One fails, one may, one is fine, one hangs."""
    target = f"{__name__}:"
    work.children(
        Child("good one", f"{target}fine", arguments={"n": 1}),
        Child("bad one", f"{target}raises"),
        Child("one that may", f"{target}dies", may_fail=True),
        Child("slow one", f"{target}slow"),
    )
