"""What a mask of dropout is a function of, and what is said where that is missing."""

import itertools

import pytest
import torch

from hcmegatron.model.dropout import Dropout
from hcmegatron.platform.seeds import seed_draws, seed_of
from megatron.core.tensor_parallel import get_cuda_rng_tracker


def draw(dropout, sample, training=True):
    dropout.begin(sample, training)
    return torch.rand(4).tolist()


def test_seeds_are_the_same_on_every_machine():
    assert seed_of(1234, "layers.0.mlp", 0, 16) == 7523611028148136747
    assert all(0 <= seed_of(number) < 2**63 for number in range(1000))


def test_a_mask_is_of_the_seed_the_place_the_part_and_the_sample():
    identities = itertools.product((1, 11), ("layers.1.mlp", "layers.11.mlp"), (0, 1, 11), (0, 1, 11))
    drawn = {}
    for seed, place, part, sample in identities:
        torch.manual_seed(0)
        drawn[seed, place, part, sample] = draw(Dropout(0.1, place, seed, part), sample)
    assert len({tuple(values) for values in drawn.values()}) == len(drawn) == 36
    torch.manual_seed(5)
    torch.rand(3)
    assert draw(Dropout(0.5, "layers.1.mlp", 11, 1), 11) == drawn[11, "layers.1.mlp", 1, 11]


def test_megatrons_region_draws_the_same():
    """Its embedding draws there under sequence parallelism, and attention always."""
    seed_draws(3)
    outside = torch.rand(4)
    for _ in range(2):
        seed_draws(3)
        with get_cuda_rng_tracker().fork():
            assert torch.equal(torch.rand(4), outside)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.1, False)])
def test_nothing_happens_where_no_mask_is_drawn(probability, training):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    Dropout(probability, "embedding").begin(None, training)
    assert torch.equal(before, torch.get_rng_state())


def test_a_micro_batch_that_does_not_say_what_it_holds_is_refused():
    with pytest.raises(ValueError, match=r"dropout of 0.1 at layers.3.mlp: .* give the model first_sample"):
        Dropout(0.1, "layers.3.mlp").begin(None, True)
