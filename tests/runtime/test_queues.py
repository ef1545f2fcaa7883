"""Every schedule runs to its end on the hardware queues that a run asks for, in a model of a GPU's."""

import pytest

from hcmegatron.platform.cuda_environment import QUEUES, dangers
from tests.ranks import run_ranks
from tests.runtime import queue_workers

pytestmark = pytest.mark.ranks
NUMBERS = [64, 32, 16, 8, 4, 1]
CASES = [
    (name, ranks, 2, overlap)
    for ranks in (2, 4, 8)
    for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipev")
    for overlap in ((False, True) if name.startswith("dualpipe") else (False,))
] + [("interleaved", ranks, 8, False) for ranks in (2, 4)]


def hangs(*args):
    (results,) = run_ranks(
        1,
        queue_workers.hangs,
        *args,
        timeout=120,
        preload=("hcmegatron.training.run", "tests.runtime.queue_workers"),
    )
    return dict(zip(args[0], results, strict=True))


@pytest.fixture(scope="module")
def found():
    return hangs(CASES, NUMBERS)


def test_with_the_queues_that_are_set_all_complete(found):
    assert [case for case, (_, numbers) in found.items() if 32 in numbers or 64 in numbers] == []


def test_with_one_all_hang(found):
    """What the model is there to find."""
    assert [case for case, (_, numbers) in found.items() if 1 not in numbers] == []


def test_there_is_a_warning_wherever_one_hangs(found):
    for case, (streams, numbers) in found.items():
        for number in NUMBERS:
            warned = dangers({QUEUES: str(number)}, streams)
            assert warned or number not in numbers, (case, number)
            assert not warned or f"{QUEUES}={number}" in warned[0]


def test_receives_posted_sooner_need_more_queues(found):
    case = "dualpipev", 4, 2, True
    ((_, numbers),) = hangs([case], NUMBERS, False).values()
    assert 8 in numbers and 16 not in numbers
    assert 8 not in found[case][1]
