"""Which samples a step takes beside what is left out, whatever the batch size is."""

import pytest

from hcmegatron.data.left_out import in_words, next_samples


@pytest.mark.parametrize(
    "seen, count, left_out, taken",
    [
        (4, 3, (), [4, 5, 6]),
        (4, 3, ((0, 4), (7, 9)), [4, 5, 6]),  # all of it lies behind or ahead
        (4, 3, ((4, 7),), [7, 8, 9]),
        (4, 3, ((5, 7),), [4, 7, 8]),  # another batch size than when it was left out
        (4, 3, ((5, 6), (7, 8)), [4, 6, 8]),
        (4, 3, ((7, 9), (5, 8)), [4, 9, 10]),  # overlapping, not in order
        (5, 2, ((4, 6), (6, 8)), [8, 9]),  # from within one, into the next
    ],
)
def test_the_next_samples(seen, count, left_out, taken):
    assert list(next_samples(seen, count, left_out)) == taken


def test_in_words():
    assert in_words(((4, 8), (12, 13))) == "sequences 4 to 7, 12 to 12"
