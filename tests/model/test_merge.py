"""A merge reads what was routed for its own micro-batch, whatever its layer's dispatcher has routed since."""

import pytest
import torch

from tests.model import merge_workers
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
def test_a_merge_after_the_next_routing(dispatcher):
    (found,) = run_ranks(1, merge_workers.merges, dispatcher, preload=("tests.model.workers",))
    expected, late, held = found
    assert torch.equal(expected, late)
    assert held == (dispatcher == "alltoall")
