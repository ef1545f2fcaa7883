"""What the ranks of a layout test run: one training step of a small model, seen as parts of the whole network."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from hcmegatron.config.schema import Config
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.param_shards import param_shards
from hcmegatron.pipeline.configured_schedule import first_micro_batches
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.megatron_schedule import widen_messages
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.training.loss import token_loss
from hcmegatron.training.model import build_model, initialised_chunks
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from tests.small_configs import SEQUENCE_LENGTH as S

VOCAB = 64
KINDS = ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr")


def randomise_connections(chunk: torch.nn.Module) -> None:
    """At init half of the connections' gradients vanish by symmetry; move every parameter by a function of its key."""
    for part in param_shards(chunk):
        if parameter_of(part.data):
            seed = int.from_bytes(hashlib.sha256(part.key.encode()).digest()[:6], "little")
            noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                part.data.add_(0.2 * part.slice_of(noise).to(part.data.dtype))


def batches(count: int, micro_batch: int) -> list[dict[str, torch.Tensor]]:
    """The same micro-batches on every rank."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for index in range(count):
        tokens = torch.randint(0, VOCAB, (micro_batch, S + 1), generator=generator)
        made.append(
            {
                "tokens": tokens[:, :-1],
                "labels": tokens[:, 1:].contiguous(),
                "loss_mask": torch.ones(micro_batch, S),
                "position_ids": torch.arange(S).expand(micro_batch, -1),
                "first_sample": index * micro_batch,
            }
        )
    return made


@dataclass
class Step:
    """One rank's part: loss (where it lives), and per key and place the gradient and the updated value."""

    loss: float | None
    tensors: dict[tuple, tuple[np.ndarray, np.ndarray]]


def own_loss_step(batches, chunk):
    """forward_step with a loss in the model's own precision: Megatron's goes through fp32."""
    batch = next(batches)
    output = chunk(batch["tokens"], batch["position_ids"], None)

    def loss(logits):
        values = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        return token_loss(batch["loss_mask"].to(values.dtype), values.view_as(batch["labels"]))

    return output, loss


@contextmanager
def groups_of(config: Config):
    """Megatron's groups, made once per layout and process: gloo gives every group threads and connections."""
    p = config.parallel
    layout = (p.tensor, p.pipeline, p.virtual, p.expert, p.expert_tensor)
    if _GROUPS.get("layout") != layout:
        if "context" in _GROUPS:
            _GROUPS["context"].__exit__(None, None, None)
        _GROUPS["context"] = megatron_groups(config)
        _GROUPS["groups"] = _GROUPS["context"].__enter__()
        _GROUPS["layout"] = layout
    seed_regions(config)
    yield _GROUPS["groups"]


_GROUPS: dict = {}


def steps(worker: str, configs: list[Config], count: int) -> list[Step]:
    """Several models one after another: starting ranks costs more than a step."""
    return [globals()[worker](config, count) for config in configs]


def fp64_step(config: Config, count: int) -> Step:
    """Forward and backward in double precision, with SGD by hand."""
    config.training.dtype = "fp64"
    with groups_of(config) as groups:
        chunks = [chunk.double() for chunk in initialised_chunks(config, VOCAB, groups)]
        for chunk in chunks:
            randomise_connections(chunk)
        wrapped = [Bare(chunk.config, chunk) for chunk in chunks]
        widen_messages(wrapped, chunks[0].decoder.message_width)
        firsts = first_micro_batches(config.parallel, groups.pp.rank(), count)
        losses = build_forward_backward(config, wrapped, groups, Execution())(
            forward_step_func=own_loss_step,
            data_iterator=[iter(batches(count, config.training.micro_batch)[first:]) for first in firsts],
            model=wrapped,
            num_microbatches=count,
            seq_length=S,
            micro_batch_size=config.training.micro_batch,
        )
        gradients = [{id(p): p.grad for p in chunk.parameters()} for chunk in chunks]
        lr = 0.1 / (count * config.training.micro_batch * S)
        seen = collect(chunks, lambda c, p: gradients[c].get(p))
        with torch.no_grad():
            for chunk in chunks:
                for p in chunk.parameters():
                    if p.grad is not None:
                        p -= lr * p.grad
        return finish(losses, seen, chunks)


def fp32_step(config: Config, count: int) -> Step:
    """One step as training does it: Megatron's loss, DDP and optimizer (SGD)."""
    with groups_of(config) as groups:
        chunks = build_model(config, VOCAB, groups)
        for chunk in chunks:
            randomise_connections(unwrap(chunk))
        optimizer = build_optimizer(config, chunks, groups, kind="sgd")
        set_learning_rate(optimizer, 0.1, 0.0)
        for chunk in chunks:
            chunk.zero_grad_buffer()
        firsts = first_micro_batches(config.parallel, groups.pp.rank(), count)
        losses = build_forward_backward(config, chunks, groups, Execution())(
            forward_step_func=megatron_loss_step,
            data_iterator=[iter(batches(count, config.training.micro_batch)[first:]) for first in firsts],
            model=chunks,
            num_microbatches=count,
            seq_length=S,
            micro_batch_size=config.training.micro_batch,
        )
        bare = [unwrap(chunk) for chunk in chunks]
        gradients = [{id(p): p.main_grad for p in chunk.parameters()} for chunk in bare]
        seen = collect(bare, lambda c, p: gradients[c].get(p))
        optimizer.step()
        return finish(losses, seen, bare)


def megatron_loss_step(batches, chunk):
    batch = next(batches)
    output = chunk(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        first_sample=batch["first_sample"],
    )
    return output, partial(token_loss, batch["loss_mask"])


def collect(chunks, gradient):
    """(place in the network) -> (gradient, parameter view) of every parameter of this rank."""
    found = {}
    for c, chunk in enumerate(chunks):
        by_storage = {p.untyped_storage().data_ptr(): p for p in chunk.parameters()}
        for part in param_shards(chunk):
            parameter = by_storage.get(part.data.untyped_storage().data_ptr())
            if parameter is None or (grad := gradient(c, id(parameter))) is None:
                continue  # a buffer
            inside = part.data.storage_offset() - parameter.storage_offset()
            view = grad.as_strided(part.data.shape, part.data.stride(), grad.storage_offset() + inside)
            found[(part.key, part.leading, part.offset)] = (view.double().numpy().copy(), part.data)
    return found


def finish(losses, seen, chunks) -> Step:
    total = (
        sum((entry["loss"][:2] for entry in losses), torch.zeros(2, dtype=torch.float64)) if losses else None
    )
    return Step(
        None if total is None else float(total[0] / total[1]),
        {place: (grad, data.detach().double().numpy().copy()) for place, (grad, data) in seen.items()},
    )


class Bare(torch.nn.Module):
    """A wrapper that has what schedules ask for, the configuration with the wide messages among it, and no fp32:
    gradients are autograd's."""

    no_sync = nullcontext

    def __init__(self, config, module):
        super().__init__()
        self.config, self.module = config, module
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.buffers = [
            SimpleNamespace(grad_data=parameter.grad, param_index_map={parameter: (0, parameter.numel())})
            for parameter in module.parameters()
        ]
        self.expert_parallel_buffers = []

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)
