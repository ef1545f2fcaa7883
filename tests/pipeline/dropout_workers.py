"""What the ranks of a dropout test run: a step whose masks are seen where they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model import dropout
from hcmegatron.model.dropout import Dropout
from hcmegatron.model.execution import Execution
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.layouts.network import Batches, Outcome, chunks_of, one_step
from tests.model.workers import groups_of


@dataclass(frozen=True)
class Mask:
    """A mask as it was drawn: for which micro-batch and place, and a digest of what it keeps. place: "" where nobody
    said what is drawn, which is so when Megatron computes the core of attention again."""

    first_sample: int
    place: str
    kept: str


@dataclass
class Step:
    """One rank's step: its outcome, the masks in the order in which they were drawn, and whether the generator is
    after it what it was before."""

    outcome: Outcome
    masks: list[Mask] = field(default_factory=list)
    generator_untouched: bool = False


def steps(configs: list[Config], shared: bool = False) -> list[Step]:
    """One step of each. shared: a planted fault, the generators go on from where they were."""
    found = []
    for config in configs:
        with groups_of(config) as groups:
            before = torch.get_rng_state()
            with observed() as masks, mock.patch.object(dropout, "seed_draws", _nothing if shared else SEED):

                def recompute(chunks, config=config, groups=groups, masks=masks):
                    count = config.training.global_batch // config.training.micro_batch // groups.dp.size()
                    held = most_held(config, count, groups.pp.rank())
                    execution = Recomputation(
                        config.recompute, chunks, micro_batch_tokens(config), *held
                    ).execution
                    masks.clear()  # a plan of blocks tries a sub-layer on a few tokens
                    return execution

                outcome = one_step(config, groups, recomputed=recompute)
            found.append(Step(outcome, masks, torch.equal(before, torch.get_rng_state())))
    return found


def evaluation(config: Config) -> tuple[list[Mask], bool]:
    """The masks of an evaluation, and whether the generator is after it what it was before."""
    with groups_of(config) as groups:
        chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
        optimizer = build_optimizer(config, chunks, groups)
        schedule = build_forward_backward(config, chunks, groups, Execution())
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
        stepper.gradients(0)
        before = torch.get_rng_state()
        with observed() as masks:
            stepper.evaluate(partial(batches, 1), 3)
        return masks, torch.equal(before, torch.get_rng_state())


SEED = dropout.seed_draws


def _nothing(seed: int) -> None: ...


@contextmanager
def observed() -> Iterator[list[Mask]]:
    """Every mask of hidden values and of attention, seen without changing what is drawn."""
    masks: list[Mask] = []
    next_one: list[tuple[int, str]] = []
    usual_begin, usual_dropout = Dropout.begin, F.dropout
    usual_attention = F.scaled_dot_product_attention

    def begin(self, first_sample, training):
        usual_begin(self, first_sample, training)
        if training and self.probability:
            next_one[:] = [(first_sample, self.place)]

    def note(kept):
        sample, place = next_one.pop() if next_one else (-1, "")
        digest = hashlib.sha256(kept.numpy().tobytes()).hexdigest()
        masks.append(Mask(sample, place, digest))

    def hidden(input, p=0.5, training=True, inplace=False):
        if training and p:
            with again():
                note(usual_dropout(torch.ones_like(input), p) != 0)
        return usual_dropout(input, p, training, inplace)

    def attention(query, key, value, *args, dropout_p=0.0, **kwargs):
        if dropout_p:
            with again(), torch.no_grad():
                # each value says which key it is of, so that the output is the attention itself
                keys = torch.eye(key.shape[-2], dtype=value.dtype).expand(*value.shape[:-1], -1)
                even = torch.zeros_like(query)
                kept = usual_attention(even, key, keys, *args, dropout_p=dropout_p, **kwargs) != 0
                note(kept)
        return usual_attention(query, key, value, *args, dropout_p=dropout_p, **kwargs)

    with (
        mock.patch.object(Dropout, "begin", begin),
        mock.patch.object(F, "dropout", hidden),
        mock.patch.object(F, "scaled_dot_product_attention", attention),
    ):
        yield masks


@contextmanager
def again() -> Iterator[None]:
    """What is drawn inside will be drawn once more."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
