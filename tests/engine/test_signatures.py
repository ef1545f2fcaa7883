"""Transformer Engine's signatures: the stub has them, and Megatron-Core's calls and ours fit them."""

import inspect

import pytest

from hcmegatron.model import te_wgrad
from tests.engine.calls import calls
from tests.engine.signatures import RECORDED, signature, versions
from tests.ranks import run_ranks

CORE = ("pytorch.Linear.__init__", "pytorch.GroupedLinear.__init__", "pytorch.DotProductAttention.forward")

# Given only where Transformer Engine has what makes it.
GUARDED = {"pytorch.cpp_extensions.general_gemm": {"workspace"}}


@pytest.mark.parametrize("version", versions())
def test_megatrons_calls_fit(version):
    made = [call for call in calls(version) if call.target in RECORDED[version]]
    assert {*CORE, "pytorch.LayerNormLinear.__init__", "pytorch.permutation.moe_permute"} <= {
        c.target for c in made
    }
    for call in made:
        own = signature(version, call.target)
        self_ = ["self"] if "self" in own.parameters else []
        own.bind_partial(*self_, *[None] * call.positional, **dict.fromkeys(call.keywords))
        takes_any = any(p.kind is p.VAR_KEYWORD for p in own.parameters.values())
        unknown = (
            set() if takes_any else call.gathered - own.parameters.keys() - GUARDED.get(call.target, set())
        )
        assert not unknown, f"{call.where}: {call.target} of {version} has no {sorted(unknown)}"
        needed = [
            n for n, p in own.parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        given = {*needed[: call.positional + len(self_)], *call.keywords, *call.gathered}
        assert set(needed) <= given, f"{call.where}: {call.target} of {version} needs {set(needed) - given}"


@pytest.mark.parametrize("version", versions())
def test_every_name_that_megatron_calls_is_recorded(version):
    """Save what this project never reaches, and what Megatron finds missing by itself."""
    unknown = {call.target for call in calls(version)} - RECORDED[version].keys()
    beside = (
        "fp8",
        "cpu_offload",
        "checkpoint",
        "quantized",
        "autocast",
        "cross_entropy",
        "moe_permute",
        "get_workspace",
    )
    assert not [name for name in unknown if not any(word in name for word in beside)], unknown


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("method", ["delay_wgrad_compute", "put", "pop"])
def test_our_store_takes_the_place_of_theirs(version, method):
    theirs = signature(version, f"pytorch.module._common.WeightGradStore.{method}")
    ours = inspect.signature(getattr(te_wgrad._Store, method))
    assert list(ours.parameters) == list(theirs.parameters)


@pytest.mark.parametrize("version", RECORDED)
def test_weight_gradients_are_computed_by_a_method_without_arguments(version):
    for name in te_wgrad._ONCE:
        assert "delay_wgrad_compute" in signature(version, f"pytorch.{name}.__init__").parameters
        assert list(signature(version, f"pytorch.{name}.backward_dw").parameters) == ["self"]


@pytest.mark.ranks
def test_the_stub_has_the_signatures():
    (found,) = run_ranks(1, "tests.engine.workers:stub_signatures", preload=("tests.engine.workers",))
    version, stub = found
    assert version == versions()[0]
    assert {name.split(".")[1] for name in stub} >= {
        "Linear",
        "GroupedLinear",
        "LayerNormLinear",
        "permutation",
    }
    assert len(stub) > 30
    for name, has in stub.items():
        assert has == str(signature(version, name)), name
