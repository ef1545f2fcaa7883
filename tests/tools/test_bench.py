"""All benchmarks, one after another, and the one of a start: how they end."""

import subprocess
import sys

import pytest

from tools import bench, bench_start
from tools.machine import NO_VERDICT


@pytest.mark.parametrize(
    ("statuses", "status", "said"),
    [
        ((0, 0), 0, []),
        ((0, NO_VERDICT), NO_VERDICT, ["bench: no verdict on a busy machine: loop"]),
        ((1, NO_VERDICT), 1, ["bench: failed: link", "bench: no verdict on a busy machine: loop"]),
    ],
)
def test_no_verdict_is_no_failure(statuses, status, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "link", "loop"])
    ends = iter(statuses)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], next(ends)))
    assert bench.main() == status
    assert [line for line in capsys.readouterr().err.splitlines() if line] == said


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (2, "why\nbench_start: the run has ended with status 2"),
        (0, "why\nbench_start: the run has left no mark of: rank, made, ready, step 1, step 2, evaluated"),
    ],
)
def test_a_start_that_fails_is_told_with_its_reason(status, said, monkeypatch):
    ended = subprocess.CompletedProcess([], status, "", "why\n")
    monkeypatch.setattr(bench_start.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(SystemExit) as told:
        bench_start.run_once(["configs/quickstart.yaml"])
    assert told.value.code == said
