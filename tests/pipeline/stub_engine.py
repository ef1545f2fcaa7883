"""A Transformer Engine that computes as Megatron's local layers do, and what the ranks of its tests run."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from unittest import mock

import torch

from hcmegatron.config.errors import ConfigError
from hcmegatron.model import specs
from hcmegatron.model.attention import CoreAttention
from hcmegatron.model.deferred import separate_weight_gradients
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.training.model import build_model, initialised_chunks
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from tests.model.workers import VOCAB, S, batches, groups_of, megatron_loss_step, small_config
from tests.recompute.workers import digest

LAYERS = "transformer_engine.pytorch.module.linear"


class EngineColumn(ColumnParallelLinear):
    """By its module's name one of Transformer Engine's."""

    __module__ = LAYERS


class EngineRow(RowParallelLinear):
    """The same."""

    __module__ = LAYERS


class Provider(LocalSpecProvider):
    """In place of Megatron's TESpecProvider."""

    def column_parallel_linear(self) -> type:
        return EngineColumn

    def row_parallel_linear(self) -> type:
        return EngineRow

    def core_attention(self) -> type:
        return CoreAttention


@contextmanager
def installed():
    """Transformer Engine is there."""
    name = "megatron.core.extensions.transformer_engine_spec_provider"
    module = ModuleType(name)
    module.TESpecProvider = Provider
    with mock.patch.dict(sys.modules, {name: module}), mock.patch.object(specs, "HAVE_TE", True):
        yield


@dataclass
class Step:
    """Digests of the gradients; how many layers are the engine's and as they were, and separable weights."""

    bits: list[str]
    untouched: int
    separable: int


def config_for(schedule: str, pipeline: int):
    config = small_config("mhc", False)
    config.parallel.schedule, config.parallel.pipeline = schedule, pipeline
    return config


def whole_backwards() -> tuple[Step, Step]:
    torch.set_num_threads(1)
    config = config_for("1f1b", 2)
    local = copy.deepcopy(config)
    local.implementation = "local"
    with groups_of(config) as groups, installed():
        return _step(local, groups), _step(config, groups)


def _step(config, groups) -> Step:
    chunks = build_model(config, VOCAB, groups)
    schedule = build_schedule(config, chunks, groups)
    (chunk,) = chunks
    chunk.zero_grad_buffer()
    schedule(
        forward_step_func=megatron_loss_step,
        data_iterator=[iter(batches(4, config.training.micro_batch))],
        model=chunks,
        num_microbatches=4,
        seq_length=S,
        micro_batch_size=config.training.micro_batch,
    )
    model = unwrap(chunk)
    engine = [module for module in model.modules() if type(module).__module__ == LAYERS]
    assert not any(isinstance(module._forward_impl, partial) for module in engine)
    return Step(
        [digest(p.main_grad) for p in model.parameters()],
        len(engine),
        sum(getattr(p, "separable", False) for p in model.parameters()),
    )


def split_backwards() -> tuple[list[str], int, str]:
    """What is said, engine layers of the model, and what is said when such layers are to be separated all the same."""
    config = config_for("zb_v", 1)
    with groups_of(config) as groups, installed():
        chunks = initialised_chunks(config, VOCAB, groups)
        layers = sum(type(module).__module__ == LAYERS for chunk in chunks for module in chunk.modules())
        (other,) = initialised_chunks(config_for("1f1b", 1), VOCAB, groups)
        try:
            separate_weight_gradients(other)
        except ConfigError as error:
            return specs.passed_over(config), layers, str(error)
    raise AssertionError("layers that keep their weight gradients were separated")


def experts() -> tuple[Step, Step]:
    """The same of a model with experts, on one rank."""
    torch.set_num_threads(1)
    config = small_config("mhc", False, parallel={"schedule": "1f1b"})
    e = config.moe
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense, e.grouped = 4, 2, 24, 1, 1, False
    local = copy.deepcopy(config)
    local.implementation = "local"
    with groups_of(config) as groups, installed():
        return _step(local, groups), _step(config, groups)
