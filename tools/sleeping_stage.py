"""Stages that sleep instead of computing: what a schedule and its messages take by themselves."""

from __future__ import annotations

import time

from torch import Tensor

from schedules.placement import Placement


class SleepingStage:
    """Takes its time and passes on a tensor, where somebody needs one."""

    def __init__(self, forward: float, output: Tensor | None, input_grad: Tensor | None) -> None:
        self._forward, self._output, self._input_grad = forward, output, input_grad

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        time.sleep(self._forward)
        return self._output

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        time.sleep(2 * self._forward)
        return self._input_grad

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        time.sleep(self._forward)
        return self._input_grad

    def backward_weight(self, microbatch: int) -> None:
        time.sleep(self._forward)


def sleeping_stages(
    placement: Placement, rank: int, forward: float, message: Tensor
) -> dict[int, SleepingStage]:
    """A rank's stages: F, I and W of `forward` seconds each, and a message wherever a stage has a neighbour."""
    return {
        stage: SleepingStage(
            forward,
            None if placement.next(stage) is None else message,
            None if placement.previous(stage) is None else message,
        )
        for stage in placement.stages_of(rank)
    }
