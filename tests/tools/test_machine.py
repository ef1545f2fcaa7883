"""A benchmark's verdict needs a machine to itself."""

import os
import time

import pytest

from tools import machine


def others(monkeypatch, used):
    """Other programs have used so many seconds of all cores in ten seconds, and this one another 3."""
    clock = iter([100.0, 110.0, 110.0])
    busy, own = iter([50.0, 50.0 + used + 3.0, 50.0 + used + 3.0]), iter([7.0, 10.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return machine.Others()


@pytest.mark.parametrize("status", [0, 1])
def test_a_quiet_machine_has_a_verdict(status, monkeypatch, capsys):
    assert others(monkeypatch, 3.9).verdict(lambda: status) == status
    assert capsys.readouterr().out == "other programs had 10% of the cores meanwhile\n"


def test_a_busy_machine_has_none(monkeypatch, capsys):
    assert others(monkeypatch, 20.0).verdict(pytest.fail) == machine.NO_VERDICT
    said = capsys.readouterr()
    assert said.out == "other programs had 50% of the cores meanwhile\n"
    assert said.err.startswith("no verdict: they may have 10%")


def test_what_is_counted_grows_with_work():
    busy, own, end = machine._busy_seconds(), machine._own_seconds(), time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert machine._own_seconds() - own >= 0.09 and machine._busy_seconds() - busy > 0


def test_the_machine_in_words():
    assert f"{len(os.sched_getaffinity(0))} cores, load " in machine.described()


def test_a_spread_is_median_least_and_most():
    assert machine.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
