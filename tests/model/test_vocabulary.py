"""What pads the vocabulary has no probability: neither loss nor gradients depend on it."""

import math

import pytest

from tests.model import vocabulary_workers
from tests.ranks import run_ranks
from tests.small_configs import VOCAB, small

RUN = {"preload": ("tests.model.vocabulary_workers",), "timeout": 120}
# to itself, to 264, 384, and to 1024, where the second tensor-parallel rank has nothing but padding
MULTIPLES = [1, 8, 128, 1024]


def configs(tensor):
    made = [small("dense", "mhc", tensor=tensor) for _ in MULTIPLES]
    for config, multiple in zip(made, MULTIPLES, strict=True):
        config.model.vocab_multiple = multiple
    return made


@pytest.fixture(scope="module")
def alone():
    return run_ranks(1, vocabulary_workers.steps, configs(1), **RUN)[0]


@pytest.mark.ranks
def test_padding_changes_nothing(alone):
    loss, norm, _, entries = alone[0]
    assert entries == 0
    for other_loss, other_norm, largest, entries in alone[1:]:
        assert entries >= 2 * 3
        assert math.isclose(other_loss, loss, rel_tol=2e-7)
        assert math.isclose(other_norm, norm, rel_tol=1e-6)
        assert largest == 0.0


@pytest.mark.ranks
def test_nor_do_the_ranks_that_split_it(alone):
    loss, norm, *_ = alone[0]
    for rank in run_ranks(2, vocabulary_workers.steps, configs(2), **RUN):
        for other_loss, other_norm, largest, _ in rank:
            assert math.isclose(other_loss, loss, rel_tol=2e-7)
            assert math.isclose(other_norm, norm, rel_tol=1e-6)
            assert largest == 0.0


@pytest.mark.ranks
def test_the_loss_of_a_network_that_knows_nothing_is_that_of_the_vocabulary():
    config = small("dense", "residual")
    config.model.vocab_multiple, config.model.init_std = 128, 1e-8
    ((loss, *_),) = run_ranks(1, vocabulary_workers.steps, [config], **RUN)[0]
    assert math.isclose(loss, math.log(VOCAB), rel_tol=1e-6)
