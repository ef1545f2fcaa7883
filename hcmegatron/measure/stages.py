"""Seconds of F, B, I, W and FB of this rank's stages, on their own, while the other ranks run theirs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from hcmegatron.pipeline.chunk_stage import ChunkStage
from schedules.placement import Placement
from schedules.runtime.gpu import GPU
from schedules.runtime.stage import OverlappingStage

Times = dict[str, list[float]]  # by "<what> <stage>"
LIVE = 2  # micro-batches between F and their backward: what a backward reads has left the nearest caches
EVALUATED = "E"  # a forward without gradients


class UndividedStage(ChunkStage):
    """A chunk under Megatron's own schedules, whose linears stay Megatron's: F and B alone."""

    def _separate(self, splits: bool) -> None:
        """They stay as they are."""


def done() -> None:
    """Wait for the device, where it is not the host that computes."""
    if GPU.present():
        GPU.synchronize()


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes, on the device too."""
    done()
    start = time.perf_counter()
    run()
    done()
    return time.perf_counter() - start


class StageClock:
    """Runs the stages of a rank without their neighbours.

    Args:
        stages: by stage id. They have begun (ChunkStage.begin) with as many micro-batches as they are asked for.
        message: makes up what neighbours would send.
    """

    def __init__(
        self, stages: Mapping[int, ChunkStage], where: Placement, message: Callable[[], Tensor]
    ) -> None:
        self.stages, self.where = stages, where
        # one of each, as in a step, whose receive buffers are used again and again
        self.inputs = {s: None if where.previous(s) is None else message() for s in stages}
        self.gradients = {s: None if where.next(s) is None else message() for s in stages}
        self.pairs = [
            (a, b)
            for a, stage in stages.items()
            for b in stages
            if a != b and isinstance(stage, OverlappingStage)
        ]

    def round(self) -> Times:
        """Everything once or twice; the same calls on all ranks that communicate within their stages. A rank's stages
        take turns, as in a step, so that each finds the caches as the others leave them."""
        found: Times = defaultdict(list)
        with ExitStack() as chunks:
            for stage in self.stages.values():
                chunks.enter_context(stage.chunk.no_sync())
            self._backwards(found)
            for forward, backward in self.pairs:
                self._pair(forward, backward, found)
        return found

    def _backwards(self, found: Times) -> None:
        """No more is held than LIVE chunks, or one of every stage."""
        one = len(self.stages) == 1
        for live in [range(LIVE)] if one else [range(m, m + 1) for m in range(LIVE)]:
            turns = [(m, *own) for m in live for own in self.stages.items()]
            for m, number, _ in turns:
                self._forward(number, m, found)
            for m, number, stage in turns:
                found[f"B {number}"].append(timed(partial(stage.backward, m, self.gradients[number])))
            divided = [turn for turn in turns if not isinstance(turn[-1], UndividedStage)]
            for m, number, _ in divided:
                self._forward(number, m, found)
            for m, number, stage in divided:
                gradient = self.gradients[number]
                found[f"I {number}"].append(timed(partial(stage.backward_input, m, gradient)))
                found[f"W {number}"].append(timed(partial(stage.backward_weight, m)))

    def _forward(self, number: int, microbatch: int, found: Times) -> None:
        stage, input = self.stages[number], self.inputs[number]
        found[f"F {number}"].append(timed(lambda: stage.forward(microbatch, input)))

    def _pair(self, forward: int, backward: int, found: Times) -> None:
        first, second = self.stages[forward], self.stages[backward]
        second.forward(0, self.inputs[backward])
        found[f"FB {forward} {backward}"].append(
            timed(
                lambda: first.forward_backward(
                    1,
                    self.inputs[forward],
                    second,
                    0,
                    lambda: self.gradients[backward],
                    lambda result: None,
                    lambda result: None,
                )
            )
        )
        first.backward(1, self.gradients[forward])

    def evaluate(self) -> Times:
        """Forwards alone, of stages that have begun so."""
        with torch.no_grad():
            return {
                f"{EVALUATED} {number}": [timed(lambda s=stage, n=number: s.forward(0, self.inputs[n]))]
                for number, stage in self.stages.items()
            }
