"""What the ranks of the tests of Transformer Engine's layers do. Imported there only: it installs the stub."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import ModuleType

from tests.engine.stub import VERSION  # isort: skip  (before Megatron-Core)

import torch
import torch.distributed as dist
import transformer_engine.pytorch as te
from torch import Tensor

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model import specs
from hcmegatron.model.execution import Execution, running
from hcmegatron.model.separate_wgrad import separate_weight_gradients
from hcmegatron.model.te_wgrad import of_engine
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import seed_regions
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.recompute.execution import RecomputedBlocks
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.engine.found import Found
from tests.engine.signatures import RECORDED
from tests.layouts.network import Batches, chunks_of, gradients, whole_gradients
from tests.model.deferred_workers import Matmuls, backward
from tests.model.workers import groups_of
from tests.small_configs import small


def steps(configs: list[Config]) -> list[Found]:
    torch.set_num_threads(1)
    found = []
    for config in configs:
        with groups_of(config) as groups:
            found.append(_step(config, groups))
    return found


def _step(config: Config, groups: object) -> Found:
    seed_regions(config)
    chunks = chunks_of(config, groups)
    wrapped = [wrap_chunk(chunk, config, groups) for chunk in chunks]
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    held = most_held(config, batches.micro_batches, groups.pp.rank())
    execution = Recomputation(config.recompute, chunks, micro_batch_tokens(config), *held).execution
    optimizer = build_optimizer(config, wrapped, groups)
    schedule = build_forward_backward(config, wrapped, groups, execution)
    stepper = Stepper(config, wrapped, optimizer, schedule, batches, groups)
    if config.parallel.overlap_grad_reduce:
        stepper.rehearse()  # Megatron overlaps from the second step on
    sums, _ = stepper.gradients(0)
    dist.all_reduce(sums)
    whole_gradients(wrapped)
    engine: dict[str, int] = {}
    local = 0
    for chunk in chunks:
        for name, module in chunk.named_modules():
            if of_engine(module):
                engine[type(module).__name__] = engine.get(type(module).__name__, 0) + 1
            elif type(module).__name__.endswith("ParallelLinear") and name != "output_layer":
                local += 1
    values = {(key, leading, offset): value.tobytes() for key, leading, offset, value in gradients(wrapped)}
    optimizer.prepare_grads()
    return Found(
        sums.tolist(),
        float(optimizer.get_grad_norm()),
        values,
        engine,
        local,
        sum(getattr(p, "separable", False) for chunk in chunks for p in chunk.parameters()),
    )


def stub_signatures() -> tuple[str, dict[str, str]]:
    """The stub's version, and the signatures of what it has of what is recorded."""
    found = {}
    for name in RECORDED[VERSION]:
        place: object = sys.modules["transformer_engine"]
        for part in name.split("."):
            place = vars(place).get(part) if isinstance(place, ModuleType) else getattr(place, part, None)
            if place in (None, object.__init__):
                break
        else:
            found[name] = str(inspect.signature(place))
    return VERSION, found


def layers() -> dict[str, dict]:
    """Two micro-batches through a layer of each kind, with biases: I and I, then W of the second and W of the first.
    Gradients against those of the layer as Transformer Engine has it."""
    torch.manual_seed(1)
    common = {"device": "cpu", "init_method": None}
    build = {
        "Linear": lambda: te.Linear(6, 10, **common),
        "LayerNormLinear": lambda: te.LayerNormLinear(6, 10, normalization="RMSNorm", **common),
        "GroupedLinear": lambda: te.GroupedLinear(2, 6, 10, **common),
    }
    inputs = [torch.randn(7, 6) for _ in range(2)]
    splits = [([3, 4],), ([7, 0],)]
    return {name: _layer(name, make(), inputs, splits) for name, make in build.items()}


def _layer(name: str, layer: torch.nn.Module, inputs: list, splits: list) -> dict:
    usual = copy.deepcopy(layer)
    reported: list[str] = []
    for key, parameter in layer.named_parameters():
        parameter.main_grad, parameter.grad_added_to_main_grad = torch.zeros_like(parameter), False
        parameter.gradient_added = partial(reported.append, key)
    store = separate_weight_gradients(layer)

    def through(module: torch.nn.Module, i: int, **how: bool) -> None:
        x = inputs[i].clone().requires_grad_()
        out = module(x, *(splits[i] if name == "GroupedLinear" else ()), **how)
        out.square().sum().backward()

    entries, matmuls = [], Matmuls()
    for i in range(2):
        with store.deferring() as entry, matmuls:
            # as Megatron's wrapper calls it
            through(layer, i, is_first_microbatch=None if layer.disable_parameter_transpose_cache else i == 0)
        entries.append(entry)
    held = store.bytes()
    weights = [key for key, p in layer.named_parameters() if getattr(p, "reported", False)]
    norm = getattr(layer, "layer_norm_weight", None)
    seen = {
        "weights": weights,
        "bytes": held,
        "reported in I": list(reported),
        "matmuls of weights in I": sum(shape in ((10, 6), (6, 10)) for shape in matmuls.shapes),
        "norm in I": norm is not None and norm.grad is not None,
    }
    for entry in reversed(entries):
        entry.run()
    for i in (1, 0):
        through(usual, i)
    seen["reported in W"] = reported
    expected = {key: p.grad for key, p in usual.named_parameters()}
    got = {key: p.main_grad if key in weights else p.grad for key, p in layer.named_parameters()}
    error = {
        key: float((got[key] - value).abs().max() / value.abs().max()) for key, value in expected.items()
    }
    seen["unequal"] = [key for key, value in error.items() if value > 1e-6]
    return seen


def refusals() -> dict:
    found: dict = {}
    config = small("dense", "shc", schedule="zb_v")
    named, unsplit = copy.deepcopy(config), copy.deepcopy(config)
    named.implementation, unsplit.parallel.schedule = "te", "1f1b"
    with groups_of(config) as groups:
        (chunk,) = chunks_of(unsplit, groups)
        found["bare"] = _refusal(separate_weight_gradients, chunk)
        chunk.more = type("LayerNormMLP", (te.Linear,), {"__module__": te.Linear.__module__})(
            6, 10, device="cpu"
        )
        for parameter in chunk.parameters():
            parameter.main_grad = torch.zeros_like(parameter)
        found["other kind"] = _refusal(separate_weight_gradients, chunk)
        old = inspect.Signature(
            [p for n, p in inspect.signature(te.Linear).parameters.items() if "delay" not in n]
        )
        te.Linear.__init__.__signature__ = old.replace()
        found["auto"], found["unsplit"] = specs.te_skipped_reason(config), specs.te_skipped_reason(unsplit)
        found["te"] = _refusal(specs.backend, named)
        found["local"] = isinstance(specs.backend(config), specs.LocalBackend)
    return found


def _refusal(function: Callable, *arguments: object) -> str:
    try:
        function(*arguments)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{function} took what it cannot do")


def reduced() -> dict[str, tuple[dict[str, Tensor], int]]:
    """Gradients of two data-parallel ranks, whose reduction begins as the last micro-batch is reported: in the second
    step, for Megatron learns in the first which there are. And how many separable ones were reported in an I."""
    torch.set_num_threads(1)
    config = small("dense", "shc", schedule="zb_h1", overlap_grad_reduce=True)
    found = {}
    with groups_of(config) as groups:
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        for how in ("local", "engine", "engine, rebuilt"):
            config.implementation = "local" if how == "local" else "auto"
            (model,) = chunks_of(config, groups)
            chunk = wrap_chunk(model, config, groups)
            execution = RecomputedBlocks(2) if how == "engine, rebuilt" else Execution()
            store = separate_weight_gradients(model)
            ready: list[Tensor] = []
            for group in {id(group): group for group in chunk.param_to_bucket_group.values()}.values():
                group.register_grad_ready = partial(_noted, ready, group.register_grad_ready)
            early = 0
            for _ in range(2):
                chunk.zero_grad_buffer()
                for kind, i in ("I0", "I1", "W0", "W1"):
                    with nullcontext() if i == "1" else chunk.no_sync():
                        if kind == "W":
                            store.pop_and_run()
                        else:
                            ready.clear()
                            with store.deferring():
                                backward(running(chunk, execution), batches(0, int(i)))
                            early += sum(getattr(parameter, "separable", False) for parameter in ready)
                chunk.finish_grad_sync()
            found[how] = {n: p.main_grad.clone() for n, p in model.named_parameters()}, early
    return found


def _noted(ready: list[Tensor], usual: Callable, parameter: Tensor, *others: object) -> None:
    ready.append(parameter)
    usual(parameter, *others)
