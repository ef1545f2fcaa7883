"""Loss-free balancing as whole runs do it, beside an exact replay from each run's own routing maps."""

from __future__ import annotations

import os
import sys
from collections import defaultdict

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training.run import train
from hcmegatron.training.step import Stepper
from megatron.core.transformer.moe.router import TopKRouter

# the package has a function of the module's name
finalize = sys.modules["megatron.core.distributed.finalize_model_grads"]


class Replay:
    """What every router of this rank counted, beside integers, at every step.

    Attributes:
        wrong: what was not as replayed, in words; empty where all was right.
        counts: per step, layer -> tokens of each expert.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.wrong: list[str] = []
        self.counts: list[dict[int, list[int]]] = []
        self.histogram: dict[int, torch.Tensor] = defaultdict(lambda: 0)
        self.stored: list[torch.Tensor] = []  # what the biases were moved by, per router

    def gradients(self, usual, stepper, *args):
        self.histogram.clear()
        self.stored.clear()
        return usual(stepper, *args)

    def count(self, usual, router, routing_map, *args, **kwargs):
        if torch.is_grad_enabled():
            self.histogram[router.layer_number] += routing_map.to(torch.int64).sum(0)
        return usual(router, routing_map, *args, **kwargs)

    def update(self, usual, tokens_per_expert, *args, **kwargs):
        updated = usual(tokens_per_expert, *args, **kwargs)  # sums over ranks in place
        self.stored += list(tokens_per_expert.clone())
        return updated

    def step(self, usual, stepper, *args):
        before = [router.expert_bias.clone() for router in stepper.balanced]
        result = usual(stepper, *args)
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, dict(self.histogram))
        exact = {
            layer: sum(each[layer] for each in everyones if layer in each)
            for layer in {layer for each in everyones for layer in each}
        }
        self.counts.append({layer: counts.tolist() for layer, counts in exact.items()})
        number = len(self.counts)
        for router, bias, stored in zip(stepper.balanced, before, self.stored, strict=True):
            counts, layer = exact[router.layer_number], router.layer_number
            if stored.tolist() != counts.tolist():
                self.wrong.append(f"step {number}, layer {layer}: {stored.tolist()} of {counts.tolist()}")
            # below the average or above it, in whole numbers
            direction = torch.sign(counts.sum() - counts * len(counts)).float()
            if not torch.equal(router.expert_bias, bias + direction * self.rate):
                self.wrong.append(f"step {number}, layer {layer}: biases {router.expert_bias.tolist()}")
        return result


def balanced(config: Config, forced: bool = False) -> tuple[list[str], list[dict], dict[int, list[float]]]:
    """Train; what was not as replayed, the counts of every step, and the biases at the end.

    Args:
        forced: tokens choose experts by the order in which they come instead of by their scores.
    """
    replay = Replay(config.moe.expert_bias_rate)
    _watch(Stepper, "gradients", replay.gradients)
    _watch(Stepper, "step", replay.step)
    _watch(finalize, "get_updated_expert_bias", replay.update)
    _watch(TopKRouter, "_apply_expert_bias", replay.count)
    if forced:
        _watch(sys.modules[TopKRouter.__module__], "topk_routing_with_score_function", _in_turn)
    biases: dict[int, list[float]] = {}

    def kept(usual, stepper, *args):
        result = usual(stepper, *args)
        biases.update({router.layer_number: router.expert_bias.tolist() for router in stepper.balanced})
        return result

    _watch(Stepper, "step", kept)
    assert train(config, discover_ranks(os.environ)) == 0
    return replay.wrong, replay.counts, biases


def _in_turn(usual, logits, topk, *args, **kwargs):
    """Expert e for every token whose place is a multiple of e + 1, the first top_k of them; then the first others."""
    probs, routing_map = usual(logits, topk, *args, **kwargs)
    place = torch.arange(len(logits), device=logits.device)
    wanted = torch.stack([place % (e + 1) == 0 for e in range(logits.shape[1])], dim=1)
    first = wanted.float() - torch.arange(logits.shape[1]) * 1e-3
    forced = torch.zeros_like(routing_map).scatter_(1, first.topk(topk, dim=1).indices, True)
    return torch.where(forced, probs.max(), torch.zeros_like(probs)), forced


def _watch(owner, name, around):
    usual = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(usual, *args, **kwargs))
