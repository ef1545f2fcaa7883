"""What NumPy, with which Triton's interpreter computes, says of exponentials that are meant to overflow."""

import pytest

# A sigmoid of minus a hundred is 1 / (1 + infinity) = 0.
sigmoids_overflow = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def padding_overflows(test):
    """Where an epsilon is added, entries beyond n become infinity times zero and are masked."""
    for what in ("overflow encountered in exp", "invalid value encountered in multiply"):
        test = pytest.mark.filterwarnings(f"ignore:{what}")(test)
    return test
