"""Comparing by turns: what drifts evenly drops out."""

import time

import pytest

from tools import alternate


def test_a_ratio_is_to_the_calls_before_and_after(monkeypatch):
    """On a clock that loses a second with every call, and a candidate that takes twice what the reference does."""
    now, calls, order = [0.0], [10.0], []

    def taking(factor, name):
        def run():
            now[0] += factor * calls[0]
            calls[0] += 1.0
            order.append(name)

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    candidates = {"a": taking(2, "a"), "b": taking(3, "b")}
    references, found = alternate.beside(taking(1, "r"), candidates, rounds=2, warmup=1)
    assert "".join(order) == "rab" + "r" + "arbr" * 2
    assert references == [13, 15, 17, 19, 21]
    assert found["a"].seconds == [28, 36] and found["b"].seconds == [48, 60]
    assert found["a"].ratios == pytest.approx([2, 2]) and found["b"].ratios == pytest.approx([3, 3])
