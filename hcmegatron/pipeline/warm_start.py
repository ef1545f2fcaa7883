"""What a rank's stages do in a step, once, before any message is under way.

On CUDA a receive that is posted is a kernel that spins until its message comes. A kernel's code is loaded at its first
launch, and loading waits for the device: if the message depends on that launch, both wait for ever. The same holds for
whatever else happens once and waits for the device, such as connecting a communicator. So all of it happens here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from torch import Tensor, nn

from hcmegatron.model.experts import GroupedExperts
from hcmegatron.pipeline.chunk_stage import ChunkStage
from schedules.actions import Action, Kind
from schedules.placement import Placement
from schedules.runtime.stage import OverlappingStage


class Alone:
    """The stages of one rank, without their neighbours.

    Args:
        stages: by stage id.
        message: makes up a message of the shape and precision that stages exchange.
    """

    def __init__(
        self, stages: Mapping[int, ChunkStage], where: Placement, message: Callable[[], Tensor]
    ) -> None:
        self.stages, self.where, self.message = stages, where, message
        self._numbers = count()

    def forward(self, stage: int) -> int:
        """F of another micro-batch, whose number is returned."""
        number = next(self._numbers)
        self._sent(self.stages[stage].forward(number, self._input(stage)))
        return number

    def backward(self, stage: int, number: int) -> None:
        """B."""
        self._sent(self.stages[stage].backward(number, self._gradient(stage)))

    def split_backward(self, stage: int, number: int) -> None:
        """I, then W."""
        self._sent(self.stages[stage].backward_input(number, self._gradient(stage)))
        self.stages[stage].backward_weight(number)

    def pair(self, forward: int, backward: int) -> None:
        """FB of these two stages, with the F and the B that belong to it."""
        before, number = self.forward(backward), next(self._numbers)
        self.stages[forward].forward_backward(
            number,
            self._input(forward),
            self.stages[backward],
            before,
            lambda: self._gradient(backward),
            self._sent,
            self._sent,
        )
        self.backward(forward, number)

    def _input(self, stage: int) -> Tensor | None:
        return None if self.where.previous(stage) is None else self.message()

    def _gradient(self, stage: int) -> Tensor | None:
        return None if self.where.next(stage) is None else self.message()

    @staticmethod
    def _sent(result: Tensor | None) -> None:
        """What the runtime may do to a result before it is sent."""
        if result is not None:
            result.detach().clone().contiguous()


def copies_to_device(chunks: Sequence[nn.Module], batches: Sequence[dict], microbatches: int) -> list[int]:
    """Bytes of every copy to the device in a step: what chunks use of each micro-batch, and the experts' counts.

    Args:
        batches: one micro-batch for each chunk.
    """
    sizes = [
        value.nbytes
        for batch in batches
        for name, value in batch.items()
        if isinstance(value, Tensor) and name != "attention_mask"  # which is made on the device
    ]
    sizes += [
        4 * len(module.linear_fc1.weight)  # one int32 an expert
        for chunk in chunks
        for module in chunk.modules()
        if isinstance(module, GroupedExperts)
    ]
    return sizes * microbatches


def run_alone(actions: Sequence[Action], alone: Alone) -> None:
    """Every kind of action that a rank's `actions` have, once for every stage. The same on all ranks that hold the
    same stages, so that what they communicate with each other inside them finds its peers."""
    splits = any(action.kind is Kind.I for action in actions)
    for stage in alone.stages:
        alone.backward(stage, alone.forward(stage))
        if splits:
            alone.split_backward(stage, alone.forward(stage))
    pairs = dict.fromkeys(
        tuple(part.stage for part in action.parts) for action in actions if len(action.parts) == 2
    )
    for forward, backward in pairs:
        if isinstance(alone.stages[forward], OverlappingStage):  # others run an FB as F, then B
            alone.pair(forward, backward)
