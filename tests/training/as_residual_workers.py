"""Runs that begin with a residual checkpoint's weights, inside ranks (tests.ranks)."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import run
from hcmegatron.training.setup import TrainingRun


def trained(config: Config) -> dict[str, Any]:
    """Train; the held-out loss (nats) and how far streams are apart, before the first step and after the last."""
    found: dict[str, Any] = {}
    usual = run.loop

    def loop(this: TrainingRun, *more: Any) -> int:
        found["before"] = _seen(this)
        done = usual(this, *more)
        found["after"] = _seen(this)
        return done

    run.loop = loop
    assert run.train(config, discover_ranks(os.environ)) == 0
    return found


def _seen(this: TrainingRun) -> tuple[float, float]:
    spread = torch.zeros(())

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        H, *_ = inputs  # after it the pre of a single-pass connection
        apart = (H - H.mean(-2, keepdim=True)).square().mean() / H.square().mean()
        spread.copy_(torch.maximum(spread, apart.sqrt()))

    hooks = [
        unwrap(chunk).decoder.contract.register_forward_pre_hook(look)
        for chunk in this.chunks
        if unwrap(chunk).post_process
    ]
    evaluation = run.evaluate(this, 0, run.never)
    for hook in hooks:
        hook.remove()
    dist.all_reduce(spread, dist.ReduceOp.MAX)
    return evaluation.loss, float(spread)
