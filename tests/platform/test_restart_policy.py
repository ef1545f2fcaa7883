"""When a run that has ended is started again: a table of histories."""

import pytest

from hcmegatron.platform.restart_policy import Again, Enough, Life, next_move


def lives(*ends):
    """(seconds, steps reached) of lives that a rank's death has ended."""
    return [Life(ended, reached, dead=True) for ended, reached in ends]


@pytest.mark.parametrize(
    "ends, limit, move",
    [
        ([(0, 7)], 1, Again(1.0)),
        ([(0, None)], 1, Again(1.0)),
        ([(0, 7), (9, 8)], 2, Again(1.0)),  # came further
        ([(0, 7), (9, 7)], 2, Again(2.0)),
        ([(0, None), (9, None)], 2, Again(2.0)),
        ([(0, 7), (9, 6)], 2, Again(2.0)),
        ([(0, 7), (9, None), (18, 7)], 3, Again(4.0)),
        ([(0, 7), (9, 6), (18, 8)], 3, Again(1.0)),
        ([(0, 9), *((n, 1 + n % 2) for n in range(1, 7))], 99, Again(60.0)),
        ([(0, 9), *((n, 1 + n % 2) for n in range(1, 6))], 99, Again(32.0)),
        ([(n, n) for n in range(4)], 4, Again(1.0)),
        ([(0, 1), (10, 2), (3599, 3)], 2, "it was started again 2 times within an hour, and --restarts=2"),
        ([(0, 1), (10, 2), (3600, 3)], 2, Again(1.0)),  # the first of them is an hour ago
        ([(0, 1), (1, 2)], 1, "it was started again 1 times within an hour, and --restarts=1"),
        (
            [(0, 7), (9, 7), (9999, 7)],
            9,
            "it ended 3 times in a row after step 7, so another start would not help",
        ),
        (
            [(0, 7), (1, None), (2, None), (3, None)],
            9,
            "it ended 3 times in a row before its weights were there, so another start would not help",
        ),
        (
            [(0, 0), (1, 0), (2, 0)],
            9,
            "it ended 3 times in a row after step 0, so another start would not help",
        ),
        ([(0, None), (1, 0), (2, 0)], 9, Again(2.0)),
    ],
)
def test_next_move(ends, limit, move):
    assert next_move(lives(*ends), limit) == (Enough(move) if isinstance(move, str) else move)


def test_what_no_death_has_ended_is_not_started_again():
    assert next_move([*lives((0, 3)), Life(5, 9, dead=False)], 9) == Enough("")
