"""Weight gradients left for later: bit for bit the usual ones, and none computed before it is asked for."""

import pytest
import torch

from tests.model import deferred_workers
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

MEGATRON = ("tests.model.workers",)
TP, SP = {"tensor": 2}, {"tensor": 2, "sequence": True}
OVERLAPPED = {"distributed_optimizer": True, "overlap_grad_reduce": True}
CASES = {
    "dense": (1, "dense", {}, "fp32", False, False),
    "dense-tied": (1, "dense", {}, "fp32", True, False),
    "dense-bf16": (1, "dense", {}, "bf16", False, False),
    "dense-tp2": (2, "dense", TP, "fp32", False, False),
    "dense-tp2-sp": (2, "dense", SP, "bf16", False, False),
    "dense-dp2-overlapped": (2, "dense", OVERLAPPED, "fp32", False, False),
    "moe": (1, "moe", {}, "fp32", False, True),
    "moe-sequential": (1, "moe", {}, "fp32", False, False),
    "moe-ep2-overlapped": (2, "moe", {"expert": 2} | OVERLAPPED, "bf16", False, True),
    "moe-tp2-sp": (2, "moe", SP, "fp32", False, True),
}


def unequal(gradients, others):
    return [name for name, value in gradients.items() if not torch.equal(value, others[name])]


@pytest.mark.parametrize("case", CASES)
def test_deferred_weight_gradients(case):
    world_size, *arguments = CASES[case]
    micro_batches = 1 if case == "dense-tied" else 3
    for rank in run_ranks(world_size, deferred_workers.compare, *arguments, preload=MEGATRON):
        assert unequal(rank["deferred"], rank["whole"]) == []
        # Megatron rounds gradients of 16-bit weights to 16 bits before it adds them (test_precision.py).
        rounded = unequal(rank["whole"], rank["usual"]) if "bf16" not in arguments else []
        # Of an expert with one token the matmul is a single product, which some BLAS add without rounding it first.
        assert [name for name in rounded if ".local_experts." not in name] == []
        for name in rounded:
            usual = rank["usual"][name]
            assert (usual - rank["whole"][name]).abs().max() <= 2**-23 * usual.abs().max(), name
        for name, value in rank["usual"].items():
            assert (value - rank["whole"][name]).abs().max() <= 2**-7 * value.abs().max(), name
        assert any(value.count_nonzero() for value in rank["usual"].values())
        assert rank["weight_matmuls_in_I"] == []
        # two steps are counted; an expert's weights count once each
        assert rank["weight_matmuls_in_W"] == 2 * micro_batches * rank["separable"]
        assert rank["other_matmuls_in_W"] == []
        if micro_batches == 3:
            entries, held = zip(*rank["held"][:3], strict=True)
            assert entries == (2, 2, 1)  # waiting when each W is asked for, in I0 I1 W0 I2 W1 W2
            assert held[0] > held[2] > 0


def test_deferred_weight_gradients_of_padded_experts():
    """Those of test_deferred_weight_gradients have no rows of zeros, which would look like weights there."""
    world_size, *arguments = CASES["moe-ep2-overlapped"]
    for rank in run_ranks(world_size, deferred_workers.compare, *arguments, True, preload=MEGATRON):
        assert unequal(rank["deferred"], rank["whole"]) == []
        assert any(".experts." in name and bool(value.any()) for name, value in rank["deferred"].items())
