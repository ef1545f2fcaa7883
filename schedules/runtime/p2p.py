"""The point-to-point messages of one rank during a step, by channel: receives posted ahead, results sent at once,
buffers reused."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from torch import Tensor

from schedules.actions import Action
from schedules.runtime.buffers import BufferPool
from schedules.runtime.position import Position
from schedules.runtime.program import Channel, Program
from schedules.runtime.record import Mark, Sent, Waited
from schedules.runtime.transport import Pending, Transport
from schedules.schedule import Message


class PipelineError(RuntimeError):
    """A message could not be sent or received; says where in the schedule."""


# Plain tuples, and few functions on the way of a message: between two computations nothing of this is in the
# processor's caches, and what is touched is what costs.
_Posted = tuple[Message, Pending, Tensor]  # with its buffer
_Sent = tuple[Message, Pending, Tensor | None]  # with what is kept until it has been sent


class P2PChannels:
    """Creating one posts the first receives of ``program``, unless it says which to post when (``post``).

    ``waited``: host seconds spent waiting; whoever reads it sets it back. ``buffers``: receive buffers posted, or
    filled and still needed, now; ``most_buffers``: at any time. ``sends`` and ``waits``: when messages were sent
    and how many bytes, and from when to when those were waited for that were not known to be over, as ``mark`` says the
    time.
    """

    def __init__(
        self,
        transport: Transport,
        pool: BufferPool,
        shape: Callable[[Message], Sequence[int]],
        program: Program,
        position: Position,
        mark: Callable[[], Mark] = time.monotonic,
    ) -> None:
        self._transport, self._pool, self._shape = transport, pool, shape
        self._lends, self._keeps, self._is_over = transport.lends, transport.keeps, transport.is_over
        self._depths, self._position = program.depths, position
        self._all_posted_ahead = program.posts is None
        self._unposted = {channel: deque(messages) for channel, messages in program.receives.items()}
        self._posted: dict[Channel, deque[_Posted]] = {channel: deque() for channel in program.receives}
        self._sent: dict[Channel, deque[_Sent]] = defaultdict(deque)
        self._held: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self.waited = 0.0
        self._mark = mark
        self.sends: list[Sent] = []
        self.waits: list[Waited] = []
        self.buffers = self.most_buffers = 0
        if self._all_posted_ahead:
            for channel in program.receives:
                for _ in range(program.depths[channel]):
                    self._post_next(channel)

    def post(self, channels: Sequence[Channel]) -> None:
        """Posts the next receive of each, as the program's ``posts`` say before an op."""
        for channel in channels:
            self._post_next(channel)

    def receive(self, message: Message) -> Tensor:
        """Waits for the message. The tensor is valid until ``release`` of its stage and micro-batch."""
        channel = message.channel
        posted, pending, buffer = self._posted[channel].popleft()
        if posted is not message:
            raise AssertionError(f"{message} is needed where {posted} was posted")
        self._wait(message, pending)
        if self._lends:
            buffer = pending.tensor  # type: ignore[attr-defined]  # a Lent; a cast would be a call
        self._held[message.target, message.microbatch].append(buffer)
        if self._all_posted_ahead:
            self._post_next(channel)
        return buffer

    def send(self, message: Message, tensor: Tensor) -> None:
        """Starts sending. ValueError for a tensor that is not what the receiver expects."""
        expected = tuple(self._shape(message))
        if tensor.shape != expected or tensor.dtype is not self._pool.dtype:
            raise ValueError(
                f"the {message} is {tuple(tensor.shape)} of {tensor.dtype}; "
                f"the receiver expects {expected} of {self._pool.dtype}"
            )
        channel = message.channel
        sent = self._sent[channel]
        # The receiver posts ahead, so that this wait is over at once unless it lags by several messages. It
        # bounds what waits to be sent, and cannot deadlock: the schedule can be run with no more than depth
        # messages in a channel, and each is received by the time it is taken up, however late that is posted.
        if len(sent) > self._depths[channel]:
            earlier, pending, _ = sent.popleft()
            if not self._is_over(pending):
                self._wait(earlier, pending)
        kept = None
        if not self._keeps:
            if tensor.requires_grad:
                tensor = tensor.detach()
            kept = tensor = self._pool.own(tensor).contiguous()
        self.sends.append((message, self._mark(), tensor.nbytes))
        try:
            pending = self._transport.send(message, tensor)
        except RuntimeError as error:  # a connection that is already lost
            raise self._lost(message, error) from error
        sent.append((message, pending, kept))

    def release(self, part: Action) -> None:
        """Nothing received for the part's stage and micro-batch is needed any more."""
        for buffer in self._held.pop((part.stage, part.microbatch), ()):
            try:
                self._pool.give_back(buffer)
            except RuntimeError as error:  # a lent one's sender is told
                reason = str(error).partition("\n")[0]
                raise PipelineError(
                    f"{self._position}: could not give back what {part} received: {reason}"
                ) from error
            self.buffers -= 1

    def finish(self) -> None:
        """Waits until everything has been sent."""
        try:
            self._transport.flush()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise PipelineError(f"{self._position}: could not say what it will receive: {reason}") from error
        for sent in self._sent.values():
            for message, pending, _ in sent:
                self._wait(message, pending)
        self._sent.clear()

    def _post_next(self, channel: Channel) -> None:
        if self._unposted[channel]:
            message = self._unposted[channel].popleft()
            buffer = self._pool.take(tuple(self._shape(message)))
            try:
                pending = self._transport.receive(message, buffer)
            except RuntimeError as error:  # a connection that is already lost
                raise self._lost(message, error) from error
            self._posted[channel].append((message, pending, buffer))
            self.buffers += 1
            if self.buffers > self.most_buffers:
                self.most_buffers = self.buffers

    def _wait(self, message: Message, pending: Pending) -> None:
        position, monotonic = self._position, time.monotonic
        position.waiting = message
        position.since = begin = monotonic()
        started = begin if self._mark is monotonic else self._mark()
        try:
            pending.wait()
        except RuntimeError as error:
            raise self._lost(message, error) from error
        position.waiting = None
        position.since = end = monotonic()
        self.waited += end - begin
        self.waits.append((message, started, end if self._mark is monotonic else self._mark()))

    def _lost(self, message: Message, error: RuntimeError) -> PipelineError:
        """Names the message and the rank at its other end, whether the rank was waiting for it or not."""
        mine = message.source_rank == self._position.rank
        peer = message.target_rank if mine else message.source_rank
        reason = str(error).partition("\n")[0]
        return PipelineError(f"{self._position}: lost the {message} (rank {peer}): {reason}")
