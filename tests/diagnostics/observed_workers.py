"""What the ranks of the tests of observations run: a step from randomised parameters that changes none, then a look."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.diagnostics import Diagnostics
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.observer import Observers, Step
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches, chunks_of
from tests.small_configs import VOCAB

WINDOWS, OBSERVED = 6, 5  # of held-out text; those that observations are of


class HeldOut:
    """Windows of tokens as hcmegatron.data.dataset.Validation gives them."""

    windows = tuple(range(WINDOWS))

    def __init__(self, config: Config, data_rank: int, data_parallel: int) -> None:
        self.config, self.data_rank, self.data_parallel = config, data_rank, data_parallel

    def __call__(self, micro_batch: int) -> dict[str, torch.Tensor]:
        b, s = self.config.training.micro_batch, self.config.data.sequence_length
        first = (micro_batch * self.data_parallel + self.data_rank) * b
        seeds = [torch.Generator().manual_seed(77 + min(first + row, WINDOWS)) for row in range(b)]
        rows = torch.stack([torch.randint(VOCAB, (s + 1,), generator=seed) for seed in seeds])
        mask = torch.ones(b, s)
        mask[max(0, WINDOWS - first) :] = 0
        return {
            "tokens": rows[:, :-1].contiguous(),
            "labels": rows[:, 1:].contiguous(),
            "loss_mask": mask,
            "position_ids": torch.arange(s).expand(b, s).contiguous(),
            "document_ids": torch.zeros(b, s, dtype=torch.long),
        }


@dataclass
class Seen:
    """Of one network: the observation (rank 0's), and in one process what was read directly (see `_direct`)."""

    observation: Any
    direct: dict[str, Any] = field(default_factory=dict)


def observed(configs: list[Config], directly: bool = False) -> list[Seen]:
    """Of networks with the same layout."""
    with megatron_groups(configs[0]) as groups:
        return [_observed(config, groups, directly) for config in configs]


def _observed(config: Config, groups: Any, directly: bool) -> Seen:
    seed_regions(config)
    chunks = chunks_of(config, groups)
    wrapped = [wrap_chunk(chunk, config, groups) for chunk in chunks]
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    held = most_held(config, batches.micro_batches, groups.pp.rank())
    recomputation = Recomputation(config.recompute, chunks, micro_batch_tokens(config), *held)
    optimizer = build_optimizer(config, wrapped, groups)
    set_learning_rate(optimizer, 0.0, 0.0)  # every layout, and what is read directly, sees the same weights
    schedule = build_forward_backward(config, wrapped, groups, recomputation.execution)
    stepper = Stepper(config, wrapped, optimizer, schedule, batches, groups)
    told: list = []
    run = SimpleNamespace(
        config=config,
        ranks=SimpleNamespace(rank=dist.get_rank()),
        chunks=wrapped,
        optimizer=optimizer,
        stepper=stepper,
        validations=[HeldOut(config, groups.dp.rank(), groups.dp.size())],
        log=SimpleNamespace(say=lambda *lines: None),
        observers=SimpleNamespace(on_observation=told.append),
    )
    watching = Observers([Diagnostics(run)])
    watching.on_start()
    before = _state(wrapped, stepper)
    result = stepper.step(0)
    biases = _state(wrapped, stepper)["biases"]
    state = torch.get_rng_state()
    watching.on_step(Step(1, result, 0.0, 1.0))
    assert torch.equal(state, torch.get_rng_state())
    after = _state(wrapped, stepper)
    assert all(map(torch.equal, after["biases"], biases)) and after["counts"] == before["counts"]
    (observation,) = told
    found = Seen(observation)
    if directly:
        found.direct = _direct(config, wrapped[0], run.validations[0])
    return found


def _state(wrapped: list, stepper: Stepper) -> dict[str, Any]:
    return {
        "biases": stepper._router_biases(),
        "counts": [router.local_tokens_per_expert.tolist() for router in stepper.balanced],
    }


def _direct(config: Config, wrapped: Any, held: HeldOut) -> dict[str, Any]:
    """One process: whatever the connections read of the held-out sequences, one sequence after another, all positions;
    and losses without each of the sub-layers and streams, by taking their modules and methods apart.

    Returns:
        "H" [S + 1] lists of [T, w, C], "x" [S] of [T, C], "read" [S] of coefficients as they are, with T in front of
        those that are not static; "gradients" by parameter's name; "losses"; "routed" by layer; "mix", as x, the pre
        with which a single-pass connection contracts.
    """
    chunk = unwrap(wrapped)
    around = chunk.decoder.sublayers
    S = len(around)
    H, x, read = ([[] for _ in range(S + 1)] for _ in range(3))
    routed: dict[int, list] = {}
    mix: list[Any] = []

    def heard(k: int, _: Any, inputs: Any, outputs: Any) -> None:
        H[k].append(inputs[0][:, 0].double().numpy().copy())
        x[k].append(outputs[0][:, 0].double().numpy().copy())
        read[k].append([value.double().numpy().copy() for value in outputs[1][:3]])

    hooks = [each.connection.register_forward_hook(partial(heard, k)) for k, each in enumerate(around)]

    def contracted(_: Any, inputs: Any) -> None:
        H[S].append(inputs[0][:, 0].double().numpy().copy())
        mix.extend(value[:, 0].double().numpy().copy() for value in inputs[1:])

    hooks.append(chunk.decoder.contract.register_forward_pre_hook(contracted))
    hooks += [
        layer.mlp.router.register_forward_hook(
            lambda _, inputs, outputs, k=k: routed.setdefault(k, []).append(outputs[1].numpy().copy())
        )
        for k, layer in enumerate(chunk.decoder.layers)
        if layer.is_moe
    ]
    gradients = {
        name: parameter.main_grad.double().numpy().copy() for name, parameter in chunk.named_parameters()
    }
    base = _loss(config, wrapped, held)
    for hook in hooks:
        hook.remove()
    losses = {"whole": base}
    for k, each in enumerate(around):
        hook = each.output_norm.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
        losses[f"sublayer {k}"] = _loss(config, wrapped, held)
        hook.remove()
    n = config.connection.n
    for stream in range(n if config.connection.kind != "residual" else 0):
        with _zeroed(chunk, stream, n):
            losses[f"stream {stream}"] = _loss(config, wrapped, held)
    own = [
        {name: value.detach().numpy() for name, value in each.connection.named_parameters()}
        for each in around
    ]
    biases = [
        layer.mlp.router.expert_bias.double().numpy()
        for layer in chunk.decoder.layers
        if layer.is_moe and layer.mlp.router.expert_bias is not None
    ]
    found = {"H": H, "x": x, "read": read, "gradients": gradients, "losses": losses, "routed": routed}
    return found | {"own": own, "biases": biases, "mix": mix}


class _zeroed:
    """Within it, no connection and no contraction of the chunk sees stream (or fraction) `stream` of n."""

    def __init__(self, chunk: Any, stream: int, n: int) -> None:
        self.chunk, self.stream, self.n = chunk, stream, n

    def zero(self, H: torch.Tensor) -> torch.Tensor:
        H = H.clone()
        if H.shape[2] == 1:  # fractions
            width = H.shape[3] // self.n
            H[:, :, 0, self.stream * width : (self.stream + 1) * width] = 0
        else:
            H[:, :, self.stream] = 0
        return H

    def __enter__(self) -> None:
        for each in self.chunk.decoder.sublayers:
            own = each.connection
            read, write = own.read, own.write
            own.read = lambda H, p=None, *mix, read=read: read(self.zero(H), None, *mix)
            own.write = lambda H, *rest, write=write: write(self.zero(H), *rest)
        self.hook = self.chunk.decoder.contract.register_forward_pre_hook(
            lambda _, inputs: (self.zero(inputs[0]), *inputs[1:])
        )

    def __exit__(self, *_: Any) -> None:
        for each in self.chunk.decoder.sublayers:
            del each.connection.read, each.connection.write
        self.hook.remove()


def _loss(config: Config, wrapped: Any, held: HeldOut) -> float:
    """Nats a token of all held-out sequences, one by one, without the run's schedule."""
    wrapped.eval()
    total = 0.0
    with torch.no_grad():
        for window in held.windows[:OBSERVED]:
            batch = held(window)
            losses = wrapped(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
            total += float(losses.double().sum())
    return total / (OBSERVED * config.data.sequence_length)


def arrays_of(seen: Seen) -> dict[str, np.ndarray]:
    """Those that are compared between layouts, and the loss."""
    arrays = dict(seen.observation.arrays)
    arrays.pop("sublayers")
    return arrays | {"loss": np.array(seen.observation.scalars["loss"])}
