"""What one rank executes, worked out before the first step: where each action's input comes from, where its
output goes, how many receives are posted ahead, and what may be in memory at most."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import NamedTuple

from schedules.actions import Action, Kind
from schedules.costs import Costs
from schedules.receives import receive_depths, receive_leads
from schedules.schedule import Message, Schedule, input_of, lower_rank, output_of
from schedules.simulate import simulate

Channel = tuple[int, int]
Handover = tuple[Kind, int, int]  # between two stages of one rank: (payload, consuming stage, micro-batch)


class ActionPart(NamedTuple):
    """A plain action (FB has two). At most one of ``receive`` and ``take`` is set, and of ``send`` and
    ``give``: a message between ranks, or a value handed over within the rank. ``is_last_use``: nothing of the
    (stage, micro-batch) is needed on this rank afterwards."""

    action: Action
    receive: Message | None
    take: Handover | None
    send: Message | None
    give: Handover | None
    is_last_use: bool


class Op(NamedTuple):
    action: Action
    parts: tuple[ActionPart, ...]


class Peaks(NamedTuple):
    """Most at any time within a step. ``live``: chunks between F and the end of their B or W; ``pending``:
    between I and W; ``buffers``: receive buffers posted, or filled and still needed."""

    live: int
    pending: int
    buffers: int


@dataclasses.dataclass(frozen=True)
class Program:
    """``receives`` has, for every channel into the rank, its messages in order; ``depths`` the number that may be
    under way, for channels into and out of the rank. ``posts``: the channels on which a receive is posted before
    each op; None: as many as ``depths`` says at once, and one more whenever one has come. ``leads``: by channel into
    the rank, how many actions ahead that is at most; empty where ``posts`` is None. ``peaks`` is exact: it depends on
    the order of the actions only."""

    rank: int
    ops: tuple[Op, ...]
    receives: dict[Channel, tuple[Message, ...]]
    depths: dict[Channel, int]
    posts: tuple[tuple[Channel, ...], ...] | None
    leads: dict[Channel, int]
    peaks: Peaks


def forward_only(schedule: Schedule) -> Schedule:
    """Its forwards in their order, for evaluation."""
    actions = tuple(
        tuple(part for action in own for part in action.parts if part.kind is Kind.F)
        for own in schedule.actions
    )
    return dataclasses.replace(schedule, actions=actions)


def compile_rank(schedule: Schedule, rank: int, late: Costs | None = None) -> Program:
    """The program of one rank of a validated schedule. ``late``: receives cost while they wait, and are posted only
    as many actions ahead of the one that needs them as hides the hops with these costs, at least one (see
    ``receives.receive_leads``), and never more than ``depths`` of a channel, or two."""
    placement = schedule.placement
    last = {(part.stage, part.microbatch): part for action in schedule.actions[rank] for part in action.parts}
    ops = []
    for action, receives, sends in lower_rank(placement, schedule.actions[rank]):
        parts = []
        for part in action.parts:
            key = part.stage, part.microbatch
            receive = _of_part(receives, part, "target")
            send = _of_part(sends, part, "source")
            take = give = None
            if receive is None and (needed := input_of(placement, part)) is not None:
                take = needed[0], part.stage, part.microbatch
            if send is None and (produced := output_of(placement, part)) is not None:
                give = produced[0], produced[1], part.microbatch
            parts.append(ActionPart(part, receive, take, send, give, last[key] == part))
        ops.append(Op(action, tuple(parts)))
    received: dict[Channel, list[Message]] = defaultdict(list)
    for op in ops:
        for compiled in op.parts:
            if compiled.receive is not None:
                received[compiled.receive.channel].append(compiled.receive)
    here = set(placement.stages_of(rank))
    depths = {channel: depth for channel, depth in receive_depths(schedule).items() if here & set(channel)}
    messages = {channel: tuple(own) for channel, own in received.items()}
    leads: dict[Channel, int] = {}
    posts = None
    if late is not None:
        posts, leads = _posts(ops, receive_leads(simulate(schedule, late)), depths)
    return Program(rank, tuple(ops), messages, depths, posts, leads, _peaks(ops, messages, depths, posts))


def _posts(
    ops: list[Op], advised: dict[tuple[int, int, int], int], depths: dict[Channel, int]
) -> tuple[tuple[tuple[Channel, ...], ...], dict[Channel, int]]:
    """Before each op, the channels on which a receive is posted, and by channel how many ops ahead at most. A message's
    is posted as many ahead as is advised, but no sooner than all but ``depths`` - 1 of those before it on the channel
    have come, and at least one ahead."""
    needed: dict[Channel, list[tuple[int, int]]] = defaultdict(
        list
    )  # by which op, and the first that it may be before
    for index, op in enumerate(ops):
        for part in op.parts:
            if part.receive is not None:
                own, depth = needed[part.receive.channel], depths[part.receive.channel]
                room = own[-depth][0] + 1 if len(own) >= depth else 0
                lead = advised[*part.receive.channel, part.receive.microbatch]
                own.append((index, max(0, min(max(index - lead, room), index - 1))))
    posts: list[list[Channel]] = [[] for _ in ops]
    leads: dict[Channel, int] = {}
    for channel, own in needed.items():
        before = len(ops)
        for index, post in reversed(own):
            before = min(before, post)  # no later than what comes after it on the channel
            posts[before].append(channel)
            leads[channel] = max(leads.get(channel, 1), index - before)
    return tuple(map(tuple, posts)), leads


def _of_part(messages: tuple[Message, ...], part: Action, end: str) -> Message | None:
    """The message that the part receives (``end`` is "target") or sends ("source")."""
    payload = Kind.F if part.kind is Kind.F else Kind.B
    for message in messages:
        if message.payload is payload and getattr(message, end) == part.stage:
            return message
    return None


def _peaks(
    ops: list[Op],
    receives: dict[Channel, tuple[Message, ...]],
    depths: dict[Channel, int],
    posts: tuple[tuple[Channel, ...], ...] | None,
) -> Peaks:
    """Replays what the runtime will hold."""
    live = pending = peak_live = peak_pending = 0
    at_once = depths if posts is None else dict.fromkeys(receives, 0)
    unposted = {channel: len(own) - min(at_once[channel], len(own)) for channel, own in receives.items()}
    buffers = peak_buffers = sum(len(own) - unposted[channel] for channel, own in receives.items())
    held: dict[tuple[int, int], int] = defaultdict(int)
    for index, op in enumerate(ops):
        if posts is not None:
            buffers += len(posts[index])
            peak_buffers = max(peak_buffers, buffers)
        for part in op.parts:
            stage, microbatch = part.action.stage, part.action.microbatch
            if part.receive is not None:
                held[stage, microbatch] += 1
                if posts is None and unposted[part.receive.channel]:
                    unposted[part.receive.channel] -= 1
                    buffers += 1
            live += part.action.kind is Kind.F
            pending += (part.action.kind is Kind.I) - (part.action.kind is Kind.W)
            peak_live, peak_pending = max(peak_live, live), max(peak_pending, pending)
            peak_buffers = max(peak_buffers, buffers)
            if part.is_last_use:
                live -= 1
                buffers -= held.pop((stage, microbatch), 0)
    return Peaks(peak_live, peak_pending, peak_buffers)
