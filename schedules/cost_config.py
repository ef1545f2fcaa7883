"""Costs as a user writes them, in a file or on the command line, made into Costs for a schedule.

A number is the cost of one P-th of the model, the share of a rank: schedules that cut the model finer get it
in proportion, so that all of them are compared on the same work. With ``layers``, the number of the model's
layers, numbers are the cost of one layer, and stages get whole layers as evenly as possible, earlier stages
more. A list has one entry per stage of the model and is taken as it stands.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schedules.actions import Kind
from schedules.costs import Costs, Link, StageCosts, stage_costs
from schedules.node_costs import NodeCost
from schedules.schedule import Schedule

# Key: (field of StageCosts, meaning). Each takes a number or a list.
PER_STAGE = {
    "forward": ("F", "time of F"),
    "input": ("I", "time of I, the input gradient"),
    "weight": ("W", "time of W, the weight gradient"),
    "backward": ("B", "time of B, the full backward (default: input + weight)"),
    "overlapped": ("FB", "time of FB, F overlapped with B (default: forward + backward)"),
    "activation": ("activation", "bytes of activations that F leaves for backward"),
    "pending": ("pending", "bytes of them that W still needs after I (default: all)"),
    "parameters": ("parameters", "bytes of parameters, gradients and optimizer state"),
}
SINGLE = {
    "latency": "time of a hop that does not depend on its size",
    "occupied": "time that a message takes from each of its two ranks, which do not compute meanwhile",
    "bandwidth": "bytes per unit of time of a link (default: unlimited)",
    "hop_bytes": "bytes of a hop for a stream of the model's width",
    "streams": "n: how many times wider the stream is",
}
NODE_TIMES = ("forward", "dgrad", "wgrad")
OTHERS = (
    "layers",
    "nodes",
    "links",
    "sending",
    "lead",
    "measured",
)  # the last: where costs come from, in words
KEYS = (*PER_STAGE, *SINGLE, *OTHERS)
LARGEST = 1e30  # so that no sum or quotient overflows
MOST_LAYERS = 10_000
LEADS = (0.0, 0.25, 0.5, 0.75, 1.0)  # tried for lead "auto"

Settings = Mapping[str, Any]


def read_cost_config(path: Path) -> dict[str, Any]:
    """The settings in a JSON or YAML file. ValueError names the file and what is wrong with it."""
    from schedules.cost_files import load_costs  # and with it PyYAML, for which nobody else waits

    try:
        found = load_costs(path)
    except ValueError as error:
        raise ValueError(f"costs file {path}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"costs file {path}: expected keys and values, such as forward: 1")
    for key in found:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KEYS)}"
            raise ValueError(f"costs file {path}: unknown key {key!r}; {hint}")
    return found


def costs_for(schedule: Schedule, settings: Settings) -> Costs:
    """Costs of the schedule's stages and links. ``lead`` "auto" is left at 1 here (see ``candidates``).

    ValueError names the key and the value that cannot be used.
    """
    sending = settings.get("sending", "early")
    if sending not in ("early", "lockstep"):
        raise ValueError(f"sending={sending!r}: early or lockstep")
    lead = settings.get("lead", "auto")
    single = {key: _number(key, settings[key]) for key in SINGLE if settings.get(key) is not None}
    streams = single.get("streams", 1)
    if streams != int(streams):
        raise ValueError(f"streams={streams}: a whole number")
    return Costs(
        stages=_occupied(schedule, _stages(schedule, settings), single.get("occupied", 0.0)),
        link=_link(single),
        links=_links(schedule, settings.get("links") or {}, single),
        hop_bytes=single.get("hop_bytes", 0.0),
        streams=int(streams),
        early=sending == "early",
        lead=1.0 if lead == "auto" else _number("lead", lead),
    )


def candidates(schedule: Schedule, settings: Settings) -> list[Costs]:
    """The costs to try: one for every lead if that is left to the simulator and pairs have something to gain
    from overlapping, else a single one."""
    costs = costs_for(schedule, settings)
    gains = any(stage.FB < stage.F + stage.B for stage in costs.stages)
    if settings.get("lead", "auto") != "auto" or not costs.early or not gains:
        return [costs]
    return [replace(costs, lead=lead) for lead in LEADS]


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{key}={value!r}: expected a number")
    if key.endswith("bandwidth") and math.isinf(value):
        return math.inf
    if value < 0 or math.isinf(value):
        raise ValueError(f"{key}={value!r}: expected a finite number, 0 or more")
    if value and not 1 / LARGEST <= value <= LARGEST:
        raise ValueError(f"{key}={value!r}: expected 0, or a number between {1 / LARGEST:g} and {LARGEST:g}")
    return float(value)


def _link(values: Mapping[str, float]) -> Link:
    return Link(values.get("latency", 0.0), values.get("bandwidth", math.inf))


def _links(schedule: Schedule, table: Any, default: Mapping[str, float]) -> dict[tuple[int, int], Link]:
    """{"0-1": {"latency": 2}}: both directions between two ranks; "0>1" only one. What is left out is as
    elsewhere."""
    if not isinstance(table, dict):
        raise ValueError(f"links={table!r}: expected ranks and values, such as {{'3-4': {{'latency': 0.2}}}}")
    links = {}
    for name, values in table.items():
        sign = ">" if ">" in str(name) else "-"
        ends = str(name).split(sign)
        if len(ends) != 2 or not all(end.strip().isdecimal() for end in ends):
            raise ValueError(f"links: {name!r} is not two ranks, such as 3-4 (both ways) or 3>4 (one way)")
        a, b = (int(end) for end in ends)
        if max(a, b) >= schedule.ranks:
            raise ValueError(f"links: {name!r}: ranks are 0 .. {schedule.ranks - 1}")
        if not isinstance(values, dict) or not values.keys() <= {"latency", "bandwidth"}:
            raise ValueError(f"links: {name}={values!r}: expected latency and bandwidth")
        link = _link({**default, **{key: _number(f"links.{name}.{key}", v) for key, v in values.items()}})
        links[a, b] = link
        if sign == "-":
            links[b, a] = link
    return links


def _stages(schedule: Schedule, settings: Settings) -> tuple[StageCosts, ...]:
    S, P = schedule.placement.model_stages, schedule.ranks
    given = {key: settings[key] for key in PER_STAGE if settings.get(key) is not None}
    layers = _layers(settings.get("layers"), S)
    nodes = _nodes(settings.get("nodes"))
    if nodes:
        if layers is None:
            raise ValueError("nodes: they are one layer's, so layers has to say how many there are")
        for key in ("forward", "input", "weight", "backward", "overlapped"):
            if key in given:
                raise ValueError(f"{key}={given[key]!r}: nodes already say how long it takes")
    sizes: list[float] = list(layers) if layers else [P / S] * S
    lists = {key: _per_stage(key, value, sizes) for key, value in given.items()}
    splits = any(action.kind is Kind.I for own in schedule.actions for action in own)
    if "backward" in given and not nodes and splits and not {"input", "weight"} <= given.keys():
        raise ValueError("backward without input and weight: this schedule has I and W; give their times too")
    stages = []
    for s in range(S):
        values: dict[str, Any] = {PER_STAGE[key][0]: column[s] for key, column in lists.items()}
        if nodes:
            rest: dict[str, Any] = {name: sizes[s] * 1.0 for name in ("activation",) if name not in values}
            stages.append(stage_costs([nodes] * int(sizes[s]), **rest, **values))
        else:
            rest = {name: sizes[s] for name in ("F", "I", "W", "activation") if name not in values}
            stages.append(StageCosts(**rest, **values))
    return tuple(stages)


def _occupied(schedule: Schedule, stages: tuple[StageCosts, ...], seconds: float) -> tuple[StageCosts, ...]:
    """With the time of its messages, received and sent, on F, I, B and FB of every stage that has neighbours on other
    ranks. A pair has those of both halves."""
    where, found = schedule.placement, list(stages)
    for stage in range(where.model_stages if seconds else 0):
        ends = [end for end in (where.previous(stage), where.next(stage)) if end is not None]
        one = seconds * sum(where.rank_of[end] != where.rank_of[stage] for end in ends)
        own = stages[stage]
        found[stage] = replace(own, F=own.F + one, I=own.I + one, B=own.B + one, FB=own.FB + 2 * one)
    return tuple(found)


def _per_stage(key: str, value: Any, sizes: Sequence[float]) -> list[float]:
    if isinstance(value, list | tuple):
        if len(value) != len(sizes):
            raise ValueError(f"{key}: {len(value)} entries for the {len(sizes)} stages of this schedule")
        return [_number(key, entry) for entry in value]
    return [_number(key, value) * size for size in sizes]


def _layers(value: Any, S: int) -> list[int] | None:
    """Layers per stage of the model, from their total or from a list."""
    if value is None:
        return None
    entries = list(value) if isinstance(value, list | tuple) else [value]
    for entry in entries:
        if isinstance(entry, bool) or entry != int(_number("layers", entry)) or entry < 0:
            raise ValueError(f"layers={entry!r}: whole numbers, 0 or more")
        if entry > MOST_LAYERS:
            raise ValueError(f"layers={entry!r}: at most {MOST_LAYERS}")
    if isinstance(value, list | tuple):
        if len(entries) != S:
            raise ValueError(f"layers: {len(entries)} entries for the {S} stages of this schedule")
        return [int(entry) for entry in entries]
    total = int(value)
    return [total // S + (s < total % S) for s in range(S)]


def _nodes(value: Any) -> list[NodeCost]:
    if value is None:
        return []
    if not isinstance(value, list) or not value:
        raise ValueError(f"nodes={value!r}: expected a list of a layer's nodes")
    nodes = []
    for entry in value:
        if not isinstance(entry, dict) or not {"role", "lane", "forward", "dgrad"} <= entry.keys():
            raise ValueError(f"nodes: {entry!r}: expected role, lane, forward, dgrad and perhaps wgrad")
        role = entry["role"]
        if unknown := entry.keys() - {"role", "lane", *NODE_TIMES}:
            raise ValueError(f"nodes: {role}: unknown key {min(unknown)!r}")
        times = {key: _number(f"nodes.{role}.{key}", entry[key]) for key in NODE_TIMES if key in entry}
        nodes.append(NodeCost(role, entry["lane"], **times))
    if len({node.role for node in nodes}) < len(nodes):
        raise ValueError("nodes: every role at most once per layer")
    return nodes
