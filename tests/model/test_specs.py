"""Transformer Engine's layers beside ours: whatever the generation of Megatron-Core calls for."""

from functools import partial

from hcmegatron.platform.megatron import experts_of
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec


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
