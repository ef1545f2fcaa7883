"""torch's DualPipeV and ours on the same stages: the comparison runs, and compares the same work."""

import pytest
import torch

from tests.ranks import run_ranks
from tools.bench_peers import GLOO, PRODUCTS, SHARED, TORCH, Case, apart, report


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 2), (2, 5)])
def test_gradients_are_equal_and_every_step_is_timed(ranks, microbatches):
    case = Case(ranks, microbatches, rows=3, width=8, depth=2)
    for found in run_ranks(ranks, "tools.bench_peers:measure", case, 2, timeout=90):
        assert list(found) == [PRODUCTS, TORCH, GLOO, SHARED]
        assert all(len(steps) == 2 and min(steps) > 0 for steps in found.values())


def test_other_gradients_are_noticed():
    one, other = ({0: [torch.tensor([4.0, 2.0])], 3: [torch.tensor([by])]} for by in (1.0, 1.5))
    assert apart(one, one) == 0
    assert apart(other, one) == 0.5


def test_the_target_is_torchs_time(capsys):
    steps = {
        PRODUCTS: [1.0, 1.0, 1.0],
        TORCH: [2.0, 2.2, 2.0],
        GLOO: [1.9, 2.1, 1.9],
        SHARED: [2.1, 2.4, 2.2],
    }
    (missed,) = report(steps)
    assert SHARED in missed
    assert "0.950" in capsys.readouterr().out
