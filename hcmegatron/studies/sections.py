"""The sections of a study's file: their keys, defaults and ranges."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from hcmegatron.studies import rules
from hcmegatron.studies.tree import Entry, refuse_unknown

T = TypeVar("T")
Range = tuple[str, Callable[[Any], bool]]
AT_LEAST_1: Range = ("at least 1", lambda v: v >= 1)
NOT_NEGATIVE: Range = ("0 or more", lambda v: v >= 0)
ABOVE_0: Range = ("above 0", lambda v: v > 0)
RISING: Range = (
    "a list of numbers above 0 and below 1, rising",
    lambda v: all(0 < x < 1 for x in v) and sorted(set(v)) == v,
)
SHARE: Range = ("above 0 and below 1", lambda v: 0 < v < 1)


def _key(default: Any, within: Range | None = None) -> Any:
    """A key of a section: its default, and its range in words with a test."""
    return field(default=default, metadata={"range": within})


@dataclass(frozen=True)
class Pairing:
    """What `tokens_per_parameter` counts."""

    parameters: Literal["active", "total", "body"] = _key("active")  # body: active ones without the head
    # own: every run's; baseline: those of the baseline at the same size, so that kinds train on as many tokens
    of: Literal["own", "baseline"] = _key("own")


@dataclass(frozen=True)
class Match:
    """Kinds are given the baseline's number of parameters, by another width of their MLPs."""

    adjust: Literal["model.ffn_hidden_size", "moe.ffn_hidden_size"] = _key("model.ffn_hidden_size")
    parameters: Literal["active", "total"] = _key("total")
    multiple_of: int = _key(1, AT_LEAST_1)
    tolerance: float = _key(0.01, SHARE)  # of the baseline's number


@dataclass(frozen=True)
class LearningRate:
    """A law in place of optimizer.lr."""

    rule: str = _key("")


@dataclass(frozen=True)
class Batch:
    """A law in place of training.global_batch."""

    rule: str = _key("")
    multiple_of: int = _key(1, AT_LEAST_1)  # sequences


@dataclass(frozen=True)
class Decay:
    """The end of a run under optimizer.schedule = wsd, and branches that end earlier."""

    share: float = _key(0.2, SHARE)  # of a run's steps, over which its rate decays
    branches: list[float] = field(
        default_factory=list, metadata={"range": RISING}
    )  # shares of a run's steps, their ends


@dataclass(frozen=True)
class OnMachine:
    """What each run is planned for."""

    gpu: str = _key("h100")  # as `hcmegatron plan --gpu`: a name, or a file, relative to the study's
    # in its place: a file of a CPU's times, relative to the study's, that `python -m tools.cpu_rates` wrote
    cpu: str | None = _key(None)
    gpus: int = _key(1, AT_LEAST_1)  # of one run
    jobs: int = _key(1, AT_LEAST_1)  # runs at a time


@dataclass(frozen=True)
class Limits:
    """What a study may take; null: no limit."""

    max_runs: int | None = _key(None, AT_LEAST_1)
    max_hours: float | None = _key(None, ABOVE_0)
    max_gpu_hours: float | None = _key(None, ABOVE_0)


@dataclass(frozen=True)
class Stop:
    """When a run counts as diverged and is ended: a loss no better than a guess (health.diverged_after), or none that
    is finite (training.max_bad_steps), in so many steps one after another; 0: as the configuration says."""

    diverged_steps: int = _key(0, NOT_NEGATIVE)


@dataclass(frozen=True)
class Report:
    """What a study's report compares with."""

    baseline: str | None = _key(None)  # a point of the axis `kind`


SECTIONS: Mapping[str, type] = MappingProxyType(
    {
        "pairing": Pairing,
        "match": Match,
        "learning_rate": LearningRate,
        "batch": Batch,
        "decay": Decay,
        "machine": OnMachine,
        "limits": Limits,
        "stop": Stop,
        "report": Report,
    }
)
OPTIONAL = ("match", "learning_rate", "batch", "decay")  # without them, nothing of the kind is done


def read_section(cls: type[T], entries: Mapping[str, Entry]) -> T:
    """A section as its dataclass."""
    hints, own = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, entry in entries.items():
        refuse_unknown(entry, name, own)
        value = entry.value(hints[name])
        within: Range | None = own[name].metadata["range"]
        if within and value is not None and not within[1](value):
            raise entry.error(f"is out of range; it must be {within[0]}")
        if name == "rule":
            _refuse_rule(entry, value, rules.LEARNING_RATES if cls is LearningRate else rules.BATCHES)
        values[name] = value
    return cls(**values)


def _refuse_rule(entry: Entry, name: str, known: Iterable[str]) -> None:
    if name in rules.REFUSED:
        raise entry.error(f"{rules.REFUSED[name]}; use {' or '.join(known)}, or an axis of rates")
    if name not in known:
        raise entry.error(f"is no rule; there are {', '.join(known)}, or an axis of values")
