"""One run, as far as its directory says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hcmegatron.config import Config, ConfigError, load_config
from hcmegatron.config.types import Loader
from hcmegatron.profiling.rank_step import RankRecord
from hcmegatron.report.inputs.events import Event, events
from hcmegatron.report.inputs.json_lines import JsonLines, or_remark, read_json, read_lines, stamp
from hcmegatron.report.inputs.lock import held
from hcmegatron.report.inputs.metrics import Columns, columns
from hcmegatron.report.inputs.observations import Observation, read_observations
from hcmegatron.report.inputs.profile import ProfileFiles

# As hcmegatron/training/run_directory.py and recorder.py, which know torch, write them.
METRICS, ENVIRONMENT, LOCK = "metrics.jsonl", "environment.json", ".lock"
RESOLVED = ("config.yaml", "config.resolved.yaml")
WARM_UP = 5  # steps that speeds are not taken of


@dataclass(frozen=True)
class Run:
    """What a run left behind up to one moment.

    Attributes:
        name: shown; unique among the runs of a report.
        configuration: by dotted key, as written; empty where it cannot be read.
        environment: versions and machine.
        training, validation: metrics.jsonl.
        plan: plan.json; profile: profile/summary.json; None where there is none that can be read.
        records: of the profile, every rank's; none where one cannot be read.
        memory: GiB that each pipeline rank has held at most, as far as that is on record.
        running: whether a job holds the directory; None where its file system has no locks.
        remarks: what could not be read, one line each.
    """

    path: Path
    name: str
    configuration: Mapping[str, Any]
    environment: Mapping[str, Any]
    training: Columns
    validation: Columns
    events: tuple[Event, ...]
    observations: tuple[Observation, ...]
    plan: Mapping[str, Any] | None
    profile: Mapping[str, Any] | None
    records: tuple[RankRecord, ...]
    memory: Mapping[int, float]
    running: bool | None
    remarks: tuple[str, ...]

    @property
    def steps(self) -> int:
        """The last step on record; 0 where there is none."""
        return int(self.training.over["step"][-1]) if len(self.training) else 0

    @property
    def planned_steps(self) -> int | None:
        """training.steps."""
        found = self.configuration.get("training.steps")
        return found if type(found) is int else None

    @cached_property
    def config(self) -> Config | None:
        """The configuration, where this version of the program takes it."""
        try:
            return load_config(_resolved(self.path))
        except (ConfigError, OSError):
            return None

    @property
    def tokens_per_s(self) -> float:
        """The median, without the first steps; NaN where no step says."""
        rates = self.training["tokens_per_s"]
        finite = [rate for rate in (rates[WARM_UP:] if len(rates) > 2 * WARM_UP else rates) if rate == rate]
        return statistics.median(finite) if finite else float("nan")


class Directory:
    """A run directory that is looked at once, or again and again while the run goes on.

    Raises:
        ConfigError: nothing in it is a run's.
    """

    def __init__(self, path: Path, name: str) -> None:
        if not path.is_dir():
            what = "is a file" if path.exists() else "there is no such directory"
            raise ConfigError(f"{path}: {what}; name a run directory, such as runs/NAME")
        if not any((path / file).is_file() for file in (METRICS, ENVIRONMENT)):
            raise ConfigError(
                f"{path}: is no run directory (neither {METRICS} nor {ENVIRONMENT} is in it); name one, such as "
                "runs/NAME"
            )
        self.path, self.name = path, name
        self._metrics = JsonLines(path / METRICS)
        self._profile = ProfileFiles(path)

    def stamp(self) -> tuple[Any, ...]:
        """What changes when there is more to see."""
        files = (
            METRICS,
            *RESOLVED,
            "plan.json",
            "restarts.jsonl",
            "diagnostics.jsonl",
            "diagnostics",
            "profile/summary.json",
            "checkpoints",
            "anomalies",
            "hang",
            "memory",
        )
        return tuple(stamp(self.path / file) for file in files), self._running()

    def read(self) -> Run:
        """The run as it is now. Of metrics.jsonl only what is new is read."""
        self._metrics.look()
        configuration, remarks = _configuration(self.path)
        running = self._running()
        if self._metrics.unreadable:
            remarks.append(f"{METRICS}: lines left out that are no metrics: {self._metrics.unreadable}")
        if self._metrics.torn and not running:
            remarks.append(f"{METRICS}: its last line has no end, and is left out")
        entries = self._metrics.entries
        batch, length = (configuration.get(key) for key in ("training.global_batch", "data.sequence_length"))
        training, validation = columns(
            entries, batch * length if type(batch) is int and type(length) is int else float("nan")
        )
        observations, more = read_observations(self.path)
        profile = self._profile.look()
        remarks += [*more, *profile.remarks]
        return Run(
            path=self.path,
            name=self.name,
            configuration=configuration,
            environment=or_remark(self.path, partial(read_json, self.path / ENVIRONMENT), remarks) or {},
            training=training,
            validation=validation,
            events=tuple(events(self.path, entries, read_lines(self.path / "restarts.jsonl"), observations)),
            observations=tuple(observations),
            plan=or_remark(self.path, partial(read_json, self.path / "plan.json"), remarks),
            profile=profile.summary,
            records=profile.records,
            memory=self._memory(training, configuration.get("parallel.pipeline"), remarks),
            running=running,
            remarks=tuple(remarks),
        )

    def _memory(self, training: Columns, pipeline: Any, remarks: list[str]) -> dict[int, float]:
        """Of memory/rank-*.json; of rank 0 also metrics.jsonl, which a run that was killed has too."""
        held = training["memory_gib"]
        found = {0: float(np.nanmax(held))} if np.isfinite(held).any() else {}
        for file in sorted((self.path / "memory").glob("rank-*.json")):
            entry = or_remark(self.path, partial(read_json, file), remarks) or {}
            rank, gib = entry.get("pipeline_rank"), entry.get("gib")
            if type(rank) is not int or (type(pipeline) is int and rank >= pipeline):
                continue  # of another layout
            if isinstance(gib, int | float) and math.isfinite(gib):
                found[rank] = max(found.get(rank, 0.0), float(gib))
        return found

    def _running(self) -> bool | None:
        """Whether a job holds the run directory's lock."""
        return held(self.path / LOCK)


def directories(paths: list[Path]) -> list[Directory]:
    """The run directories, by names of their own.

    Raises:
        ConfigError: one is none, or is named twice.
    """
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{paths[number]}: is named twice; name each run once")
    names = [place.name or str(place) for place in places]
    shown = [
        name if names.count(name) == 1 else f"{place.parent.name}/{name}"
        for name, place in zip(names, places, strict=True)
    ]
    if len(set(shown)) < len(shown):
        shown = [str(place) for place in places]
    return [Directory(path, name) for path, name in zip(paths, shown, strict=True)]


def _configuration(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The resolved configuration by dotted key, whatever version wrote it; and what is the matter with it."""
    file = _resolved(path)
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        return {}, [f"there is no {RESOLVED[0]}"]
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}, [f"{file.name} cannot be read"]
    if not isinstance(found, dict):
        return {}, [f"{file.name} is no configuration"]
    flat: dict[str, Any] = {}
    for section, values in found.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[str(section)] = values
    return flat, []


def _resolved(path: Path) -> Path:
    """The configuration that the run wrote: config.yaml, unless that is somebody's own."""
    own = path / RESOLVED[1]
    return own if own.exists() else path / RESOLVED[0]
