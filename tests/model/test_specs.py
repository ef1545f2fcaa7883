"""Transformer Engine's layers beside ours: whatever the generation of Megatron-Core calls for."""

from functools import partial
from typing import get_args

from hcmegatron.config import Config
from hcmegatron.config.types import leaves
from hcmegatron.model.specs import layer_spec
from hcmegatron.planner.layers import ATTENTION
from hcmegatron.platform.megatron import experts_of
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec


def test_every_attention_that_can_be_configured_is_one_of_its_own():
    """In the layers, and in what the planner counts them as."""
    names = get_args(leaves()["model.attention"])
    modules = set()
    for name in names:
        config = Config()
        config.model.attention = name
        modules.add(layer_spec(config, 0).submodules.self_attention.module)
    assert len(modules) == len(names)
    assert set(names) == ATTENTION.keys()


class Experts:
    def __init__(self, *args, submodules=None, **others):
        self.submodules = submodules


PARTS = MLPSubmodules(linear_fc1=int, linear_fc2=float)


class Earlier:
    """With the signature of 0.16.1."""

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool):
        assert not moe_use_legacy_grouped_gemm
        return (Experts, PARTS) if moe_use_grouped_gemm else (list, None)


class Later:
    """With that of 0.19.2."""

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool):
        return partial(Experts, submodules=PARTS) if moe_use_grouped_gemm else partial(list)


def test_experts_are_a_module_and_its_parts():
    spec = experts_of(Earlier(), True)
    assert isinstance(spec, ModuleSpec) and spec.module is Experts and spec.submodules is PARTS
    assert experts_of(Earlier(), False).module is list


def test_experts_are_a_builder():
    built = experts_of(Later(), True)(8, None, pg_collection=None)
    assert isinstance(built, Experts) and built.submodules is PARTS
    assert experts_of(Later(), False).func is list
