"""What the ranks of a recomputation test run: one training step of a small model, seen as bits and counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import torch

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from tests.model.workers import VOCAB, S, batches, megatron_loss_step, randomise_connections


@dataclass
class Step:
    """One rank's step.

    bits: a digest of every gradient, updated parameter and buffer. calls: forwards of attention, MLPs, experts.
    measured, planned: (kept, peak) bytes in mode block. leaked: bytes that are still held after the step.
    """

    loss: float | None
    bits: dict[str, str]
    calls: Counter
    measured: tuple[int, int] | None
    planned: tuple[int, int] | None
    leaked: int


def steps(configs: list[Config], count: int) -> list[Step]:
    """One model after another: starting ranks costs more than a step."""
    torch.set_num_threads(1)
    return [step(config, count) for config in configs]


def step(config: Config, count: int) -> Step:
    """One step of `count` micro-batches as training does it, with random connections."""
    with megatron_groups(config) as groups:
        wrapped = build_model(config, VOCAB, groups)
        chunks = [unwrap(chunk) for chunk in wrapped]
        recomputation = Recomputation(
            config.recompute,
            chunks,
            micro_batch_tokens(config),
            *most_held(config, count, groups.pp.rank()),
        )
        for chunk in chunks:
            randomise_connections(chunk)
        optimizer = build_optimizer(config, wrapped, groups)
        set_learning_rate(optimizer, 0.01, 0.0)
        calls = count_calls(chunks)
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        losses = build_forward_backward(config, wrapped, groups, recomputation.execution)(
            forward_step_func=megatron_loss_step,
            data_iterator=[iter(batches(count, config.training.micro_batch)) for _ in wrapped],
            model=wrapped,
            num_microbatches=count,
            seq_length=S,
            micro_batch_size=config.training.micro_batch,
        )
        bits = {
            f"{c}.{k}.grad": digest(p.main_grad)
            for c, m in enumerate(chunks)
            for k, p in m.named_parameters()
        }
        optimizer.step()
        for c, chunk in enumerate(chunks):
            bits |= {
                f"{c}.{name}": digest(tensor)
                for name, tensor in (*chunk.named_parameters(), *chunk.named_buffers())
            }
        total = sum(float(entry["loss"][0]) for entry in losses) if losses else None
        plan = recomputation.plan
        meter = recomputation.execution.meter if plan else None
        return Step(
            total,
            bits,
            calls,
            (meter.kept, meter.peak) if meter else None,
            (plan.kept, plan.peak) if plan else None,
            meter.bytes("around") + meter.bytes("inside") if meter else 0,
        )


def count_calls(chunks) -> Counter:
    """Counts the forwards of what must not run again in mode block."""
    calls: Counter = Counter()
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            inside = {"attention": layer.self_attention}
            inside |= (
                {"experts": layer.mlp.experts, "router": layer.mlp.router}
                if layer.is_moe
                else {"mlp": layer.mlp}
            )
            for name, module in inside.items():
                module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.detach().double().numpy().tobytes()
    ).hexdigest()  # exact, and NumPy knows no bf16
