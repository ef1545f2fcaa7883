"""Grouped experts against sequential ones: values, gradients, checkpoint layout."""

import pytest
import torch

from tests.model import experts_workers
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

MEGATRON = ("tests.model.workers",)


def ranks(world_size, target, *arguments):
    return run_ranks(world_size, target, *arguments, preload=MEGATRON)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize("counts", [(5, 0, 11, 1, 0, 7, 0, 0), (0, 0, 0), (24,)], ids=str)
def test_grouped_equals_sequential(counts, dtype, tolerance, activation):
    (found,) = ranks(1, experts_workers.both, list(counts), dtype, activation)
    for name, expected in found["sequential"].items():
        got = found["grouped"][name]
        assert got.shape == expected.shape and got.dtype == expected.dtype, name
        if expected.numel():
            scale = max(float(expected.abs().max()), 1e-30)
            assert float((got - expected).abs().max()) <= tolerance * scale, name
    for e, count in enumerate(counts):
        assert bool(found["grouped"]["linear_fc1"][e].any()) == (count > 0)


@pytest.mark.parametrize(
    "parallel",
    [{}, {"expert": 2}, {"tensor": 2, "sequence": True, "expert_tensor": 2}],
    ids=["one", "ep2", "etp2"],
)
def test_same_parts_and_initial_values(parallel):
    for grouped, sequential in ranks(2 if parallel else 1, experts_workers.same_parts, parallel):
        assert [part[:4] for part in grouped] == [part[:4] for part in sequential]
        assert any("experts.experts" in part[0] and part[1] for part in grouped)
        for one, other in zip(grouped, sequential, strict=True):
            assert torch.equal(one[4], other[4]), one[0]


@pytest.mark.parametrize("saved_grouped", [True, False])
def test_checkpoints_are_interchangeable(tmp_path, saved_grouped):
    parallel = {"tensor": 2, "sequence": True, "expert": 2}
    assert all(ranks(2, experts_workers.interchange, str(tmp_path), parallel, saved_grouped))
