"""Schedules over Transformer Engine's layers, whose weight gradients are left for later through their backward_dw.

A stub stands in for it (stub.py). It computes as Megatron's local layers do, so that gradients are equal bit for bit.
"""

import copy

import pytest

from tests.ranks import run_ranks
from tests.small_configs import small

RUN = {"preload": ("tests.engine.workers",), "timeout": 170}


SCHEDULES = {
    "zb_h1": ("dense", {"schedule": "zb_h1", "pipeline": 2}, {}),
    "zb_v": ("moe", {"schedule": "zb_v", "pipeline": 2}, {}),
    "dualpipev": ("dense", {"schedule": "dualpipev", "pipeline": 2}, {}),
    "dualpipev overlapped": ("moe", {"schedule": "dualpipev", "pipeline": 2, "overlap": True}, {}),
    "dualpipe": ("moe", {"schedule": "dualpipe", "pipeline": 2}, {}),
    "1f1b in 16 bits": ("moe", {"schedule": "1f1b", "pipeline": 2}, {"training.dtype": "bf16"}),
}
GQA = {"model.attention": "gqa", "model.query_groups": 2}
# Transformer Engine has MLA's down-projections whole on every tensor-parallel rank: other sums, other places.
ROUNDED = ("whole latents",)
LAYOUTS = {
    "tensor": ("dense", {"schedule": "zb_v", "tensor": 2, "sequence": True}, {}),
    "expert": ("moe", {"schedule": "zb_v", "tensor": 2, "sequence": True, "expert": 2}, GQA),
    "expert tensor": ("moe", {"schedule": "zb_v", "tensor": 2, "sequence": True, "expert_tensor": 2}, GQA),
    "whole latents": ("moe", {"schedule": "zb_v", "tensor": 2, "sequence": True}, {}),
    "data, overlapped, rebuilt": (
        "dense",
        {"schedule": "zb_h1", "overlap_grad_reduce": True, "distributed_optimizer": True},
        {"recompute.mode": "block", "recompute.block_length": "2"},
    ),
    "data, overlapped, rebuilt, unsplit": (
        "dense",
        {"schedule": "1f1b", "overlap_grad_reduce": True, "distributed_optimizer": True},
        {"recompute.mode": "block", "recompute.block_length": "2"},
    ),
    "sequential experts": ("moe", {"schedule": "zb_v"}, {"moe.grouped": False}),
    "16 bits": ("moe", {"schedule": "zb_v"}, {"training.dtype": "bf16"}),
    "whole layers again": ("moe", {"schedule": "zb_v"}, {"recompute.mode": "full"}),
}


@pytest.mark.ranks
@pytest.mark.parametrize("cases", [SCHEDULES, LAYOUTS], ids=["schedules", "layouts"])
def test_gradients_are_those_of_local_layers(cases):
    """Bit for bit: of every parameter, and with it when they are reported as ready for the reduction."""
    configs = []
    for architecture, parallel, settings in cases.values():
        engine = small(architecture, "shc", **parallel)
        for key, value in settings.items():
            section, _, name = key.partition(".")
            setattr(getattr(engine, section), name, value)
        local = copy.deepcopy(engine)
        local.implementation, local.moe.grouped = (
            "local",
            False,
        )  # the stub's grouped matmul is one for each expert
        configs += [local, engine]
    ranks = run_ranks(2, "tests.engine.workers:steps", configs, **RUN)
    for rank, found in enumerate(ranks):
        for name, local, engine in zip(cases, found[::2], found[1::2], strict=True):
            assert local.engine == {} and engine.local == 0 and engine.engine, name
            grouped = cases[name][0] == "moe" and cases[name][2].get("moe.grouped", True)
            assert grouped == ("TEColumnParallelGroupedLinear" in engine.engine), name
            loss = pytest.approx(local.loss, rel=1e-6) if name in ROUNDED else local.loss
            assert engine.loss == loss, name
            assert engine.norm == pytest.approx(local.norm, rel=1e-6), name
            if name in ROUNDED:
                continue
            assert engine.gradients.keys() == local.gradients.keys() and len(local.gradients) > 20, name
            unequal = [key for key, value in local.gradients.items() if engine.gradients[key] != value]
            assert not unequal, (rank, name, unequal[:5])


@pytest.mark.ranks
def test_the_reduction_waits_for_w():
    """Where it overlaps with backward, it begins with the gradients that W has added, and not at I."""
    for found in run_ranks(2, "tests.engine.workers:reduced", **RUN):
        local, early = found.pop("local")
        assert early == 0 and len(found) == 2
        for how, (engine, early) in found.items():
            assert early == 0, how
            assert local.keys() == engine.keys()
            assert [name for name, value in local.items() if not value.equal(engine[name])] == [], how


@pytest.mark.ranks
def test_one_layer_of_each_kind():
    """I computes no weight gradient and reports none, W in any order adds and reports each once; what an I left is
    counted; a norm inside the layer has its gradient from I on."""
    (found,) = run_ranks(1, "tests.engine.workers:layers", **RUN)
    assert set(found) == {"Linear", "LayerNormLinear", "GroupedLinear"}
    for name, seen in found.items():
        assert seen["matmuls of weights in I"] == 0 and seen["reported in I"] == [], name
        assert seen["reported in W"] == seen["weights"] * 2, name
        assert seen["bytes"] > 0, name
        assert seen["unequal"] == [] and seen["norm in I"] == (name == "LayerNormLinear"), name


@pytest.mark.ranks
def test_what_cannot_be_separated():
    """A Transformer Engine from before backward_dw: local layers, or a refusal; a layer of another kind; one without a
    gradient buffer."""
    (found,) = run_ranks(1, "tests.engine.workers:refusals", **RUN)
    (line,) = found["auto"]
    assert "local layers" in line and "parallel.schedule = zb_v" in line and "version 2.3" in line
    assert found["local"] and found["unsplit"] == []
    assert "implementation: te" in found["te"] and "implementation: local" in found["te"]
    assert "LayerNormMLP" in found["other kind"] and "implementation: local" in found["other kind"]
    assert "no gradient buffer" in found["bare"] and "implementation: local" in found["bare"]
