"""Muon under every layout gives the weights of one process; sharded or not, the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ranks import run_ranks
from tests.small_configs import put, small
from tests.training import muon_workers

pytestmark = pytest.mark.ranks

STEPS = 3
# Cross entropy and connections are fp32 in an fp64 network, and what rounding leaves of a momentum is orthogonalised
# too. A step moves an element by about 4e-3.
LIMITS = {"residual": 1e-7, "mhc": 5e-6, "dhc": 5e-6}
NETWORKS = (("dense", "residual"), ("dense", "mhc"), ("moe", "residual"), ("moe", "dhc"))
# ranks, settings of `parallel`; experts under tensor parallelism need sequence parallelism
LAYOUTS = {
    "TP 2 + SP": (2, {"tensor": 2, "sequence": True}, ("dense", "moe")),
    "EP 2": (2, {"expert": 2}, ("moe",)),
    "DP 2": (2, {}, ("dense", "moe")),
    "PP 2": (2, {"pipeline": 2}, ("dense", "moe")),
    "DualPipe": (2, {"pipeline": 2, "schedule": "dualpipe"}, ("dense", "moe")),
    "EP 2 x expert TP 2, TP 2 + SP": (
        4,
        {"expert": 2, "tensor": 2, "sequence": True, "expert_tensor": 2},
        ("moe",),
    ),
    "TP 2 x DP 2": (4, {"tensor": 2}, ("dense",)),
}


def network(architecture, kind, dtype="fp64", **parallel):
    config = small(architecture, kind, **parallel)
    config.moe.grouped = dtype != "fp64" and config.moe.grouped
    # a step of 1e-3 of Adam's own, so that errors of its root are not what is compared
    put(config, optimizer={"name": "muon", "eps": 1e-3, "clip": 0.0}, muon={"weight_decay": 0.3})
    config.training.global_batch, config.training.dtype = 8, dtype
    return config


def run(ranks, configs):
    return run_ranks(
        ranks, muon_workers.trained, configs, STEPS, preload=("tests.model.workers",), timeout=200
    )


def largest_error(reference, ranks):
    """Over all ranks and parts, beside what one process has."""
    whole = whole_tensors(reference)
    seen = {place: np.zeros(tensor.shape, bool) for place, tensor in whole.items()}
    errors = []
    for held in ranks:
        for (key, leading, offset), values in held.items():
            box = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
            seen[key, leading][box] = True
            errors.append(np.abs(values - whole[key, leading][box]).max())
    assert all(covered.all() for covered in seen.values())
    return max(errors)


def whole_tensors(held):
    ends = {}
    for (key, leading, offset), values in held.items():
        end = np.add(offset, values.shape)
        ends[key, leading] = np.maximum(ends.get((key, leading), end), end)
    whole = {place: np.full(end, np.nan) for place, end in ends.items()}
    for (key, leading, offset), values in held.items():
        whole[key, leading][tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))] = (
            values
        )
    return whole


@pytest.fixture(scope="module")
def alone():
    (found,) = run(1, [network(*each) for each in NETWORKS])
    return dict(zip(NETWORKS, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_those_of_one_process(layout, alone):
    ranks, parallel, architectures = LAYOUTS[layout]
    places = [each for each in NETWORKS if each[0] in architectures]
    found = run(ranks, [network(*each, **parallel) for each in places])
    errors = {each: largest_error(alone[each], [rank[i] for rank in found]) for i, each in enumerate(places)}
    print(layout, errors)
    assert {each: error for each, error in errors.items() if error > LIMITS[each[1]]} == {}


SHARDED = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sharding_over_data_parallel_ranks_changes_no_bit(dtype):
    replicated = [network(*each, dtype, distributed_optimizer=False) for each in NETWORKS]
    sharded = [network(*each, dtype, **SHARDED) for each in NETWORKS]
    for first, second in zip(run(2, replicated), run(2, sharded), strict=True):
        for one, other in zip(first, second, strict=True):
            different = [place for place in one if not np.array_equal(one[place], other[place])]
            assert one.keys() == other.keys() and not different
