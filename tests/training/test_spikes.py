"""What is a spike beside the steps before it."""

import pytest

from hcmegatron.config.schema import Health
from hcmegatron.training.spikes import Spikes, deviations


def test_deviations_by_hand():
    # median 3, distances 2 1 0 1 97, whose median is 1: one deviation is 1.4826
    assert deviations(3 + 2 * 1.4826, [1, 2, 3, 4, 100]) == pytest.approx(2)
    assert deviations(0, [1, 2, 3, 4, 100]) == pytest.approx(-3 / 1.4826)


def test_a_plateau_has_a_least_deviation():
    assert deviations(2.01, [2.0] * 9) == pytest.approx(5)  # of a thousandth of the median
    assert deviations(0.0, [0.0] * 9) == 0


def spikes(loss=5.0, norm=0.0, window=8, recent=()):
    return Spikes(Health(loss_spike=loss, grad_norm_spike=norm, spike_window=window), recent)


def test_nothing_is_a_spike_before_half_of_the_window():
    watched = spikes()
    for value in (1.0, 1.1, 0.9):
        watched.add(value, 1.0)
    assert watched.found(99.0, 1.0) == ""
    watched.add(1.0, 1.0)
    assert watched.found(99.0, 1.0).startswith("loss 1322.0 deviations above the median 1 of the last 4 good")
    assert (
        watched.found(1.3, 1.0) == "" and watched.found(0.0, 99.0) == ""
    )  # below; and nobody asks for norms


def test_only_what_goes_up_is_a_spike_and_each_number_has_its_limit():
    recent = [(1.0, 4.0), (1.1, 5.0), (0.9, 6.0), (1.0, 5.0)]
    assert spikes(5.0, 6.0, recent=recent).found(1.0, 12.0).startswith("gradient norm 9.4 deviations above")
    assert spikes(5.0, 10.0, recent=recent).found(1.0, 12.0) == ""
    assert spikes(5.0, 6.0, recent=recent).found(0.0, 0.0) == ""


def test_the_window_forgets_and_can_be_kept():
    watched = spikes(window=4)
    for value in range(6):
        watched.add(value, 0.5)
    assert watched.recent == ((2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5))
    again = spikes(window=4, recent=[list(pair) for pair in watched.recent])  # as JSON has them
    assert again.recent == watched.recent and again.found(40, 0.5) == watched.found(40, 0.5) != ""


def test_nothing_is_kept_where_nobody_asks():
    watched = spikes(loss=0.0, recent=[(1.0, 1.0)] * 8)  # a checkpoint of a run that did
    watched.add(1.0, 1.0)
    assert watched.recent == () and watched.found(99.0, 99.0) == ""
