"""A step whose micro-batches weigh unequally, beside its loss by hand and by finite differences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.model.execution import Execution
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import loss
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper


class Uneven(Batches):
    """Of sample g, every (2 + g mod 3)-th token does not count."""

    def __call__(self, seen: int, micro_batch: int) -> dict:
        batch = super().__call__(seen, micro_batch)
        batch["loss_mask"][:, :: 2 + batch["first_sample"] % 3] = 0
        return batch


@contextmanager
def stepper_of(config: Config) -> Iterator[Stepper]:
    ranks = discover_ranks(os.environ)
    with process_groups(config, ranks) as groups:
        text = Text(find_corpus(config.data), build_tokenizer(config.data.tokenizer))
        chunks = build_model(config, text.tokenizer.vocab_size, groups)
        batches = Uneven(text, config.data, config.training, groups.dp.rank(), groups.dp.size())
        schedule = build_forward_backward(config, chunks, groups, Execution())
        yield Stepper(config, chunks, build_optimizer(config, chunks, groups), schedule, batches, groups)


def slope(config: Config, length: float = 1e-3) -> tuple[float, float]:
    """The change of the logged loss along its gradient g, by finite differences of `length`, and g's square."""
    with stepper_of(config) as stepper:
        stepper.gradients(0)
        parameters = [p for chunk in stepper.chunks for p in chunk.parameters()]
        gradients = [parameter.main_grad.clone() for parameter in parameters]
        squared = torch.tensor(sum(float(g.double().square().sum()) for g in gradients), dtype=torch.float64)
        if config.parallel.pipeline > 1:
            dist.all_reduce(squared)
        h = length / float(squared) ** 0.5

        def logged_at(shift: float) -> float:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.add_(gradient, alpha=shift)
            return loss.mean(stepper.gradients(0)[0])

        forward = logged_at(h)
        backward = logged_at(-2 * h)
        return (forward - backward) / (2 * h), float(squared)


def logged(config: Config) -> tuple[float, float, float]:
    """The step's loss as it is logged, by hand over all tokens, and as a mean of the micro-batches' means."""
    with stepper_of(config) as stepper:
        found = []
        (chunk,) = stepper.chunks
        for index in range(stepper.batches.micro_batches):
            batch = stepper.batches(0, index)
            with torch.no_grad():
                losses = chunk(
                    batch["tokens"],
                    batch["position_ids"],
                    None,
                    labels=batch["labels"],
                    first_sample=batch["first_sample"],
                )
            found.append((float((losses * batch["loss_mask"]).sum()), float(batch["loss_mask"].sum())))
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, found)
        pairs = [pair for rank in everyones for pair in rank]
        by_hand = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
        of_means = sum(total / count for total, count in pairs) / len(pairs)
        return loss.mean(stepper.gradients(0)[0]), by_hand, of_means
