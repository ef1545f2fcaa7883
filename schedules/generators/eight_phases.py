"""The eight phases of DualPipe and DualPipeV (arXiv:2412.19437; github.com/deepseek-ai/DualPipe).

A rank works on two streams of micro-batches. Direction 0 enters the pipeline at the rank's own end, direction
1 arrives from the far end. Folding the pipeline there, every rank has a depth: h = 0 at the ends, h = H-1 in
the middle, where a micro-batch of direction 0 meets those of direction 1.
"""

from collections import deque

from schedules.actions import FB, Action, B, F, I, W


class _Directions:
    """Emits actions, counting micro-batches per direction and keeping the queue of deferred W."""

    def __init__(self, stages: tuple[int, int], first: tuple[int, int]) -> None:
        self.stages = stages
        self.next_forward = list(first)
        self.next_backward = list(first)
        self.pending: deque[tuple[int, int]] = deque()
        self.order: list[Action] = []

    def _forward(self, direction: int) -> Action:
        microbatch = self.next_forward[direction]
        self.next_forward[direction] += 1
        return F(self.stages[direction], microbatch)

    def _backward(self, direction: int) -> Action:
        microbatch = self.next_backward[direction]
        self.next_backward[direction] += 1
        return B(self.stages[direction], microbatch)

    def forward(self, direction: int) -> None:
        self.order.append(self._forward(direction))

    def backward(self, direction: int) -> None:
        self.order.append(self._backward(direction))

    def backward_input(self, direction: int) -> None:
        _, stage, microbatch, _ = self._backward(direction)
        self.pending.append((stage, microbatch))
        self.order.append(I(stage, microbatch))

    def weight(self) -> None:
        self.order.append(W(*self.pending.popleft()))

    def both(self, forward: int, backward: int) -> None:
        self.order.append(FB(self._forward(forward), self._backward(backward)))


def eight_phases(
    H: int, h: int, microbatches: int, stages: tuple[int, int], first: tuple[int, int]
) -> tuple[Action, ...]:
    """The actions of a rank at depth h of H, with ``microbatches`` (at least 2H) in each direction.

    ``stages[d]`` is the rank's stage id in direction d, ``first[d]`` the number of d's first micro-batch.
    2H-h-1 backwards are split into I and W; at most h+1 W are pending at any time.
    """
    do = _Directions(stages, first)
    for _ in range(2 * (H - h - 1)):  # 1
        do.forward(0)
    for _ in range(h + 1):  # 2
        do.forward(0)
        do.forward(1)
    for _ in range(H - h - 1):  # 3
        do.backward_input(1)
        do.weight()
        do.forward(1)
    for i in range(microbatches - 2 * H + h + 1):  # 4, the steady state
        if i == 0 and h == H - 1:
            # In the middle, direction 1's first gradient comes from the very forward just issued.
            do.forward(0)
            do.backward(1)
        else:
            do.both(0, 1)
        do.both(1, 0)
    for _ in range(H - h - 1):  # 5
        do.backward(1)
        do.both(1, 0)
    # 6: the last h+1 of these 2(h+1) backwards leave their W behind, to fill the drain.
    for i in range(2 * (h + 1)):
        if i <= h:
            do.backward(1 - i % 2)
        else:
            do.backward_input(1 - i % 2)
    for _ in range(H - h - 1):  # 7
        do.weight()
        do.backward_input(0)
    for _ in range(h + 1):  # 8
        do.weight()
    return tuple(do.order)
