"""A study as its file, a variant and overrides say, before its runs are worked out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import read_config
from hcmegatron.config.schema import Config
from hcmegatron.studies.axes import BUDGETS, Axis
from hcmegatron.studies.exclusions import Exclusion
from hcmegatron.studies.places import configuration
from hcmegatron.studies.runs import StudyRun
from hcmegatron.studies.sections import (
    Batch,
    Decay,
    LearningRate,
    Limits,
    Match,
    OnMachine,
    Pairing,
    Report,
    Stop,
)
from hcmegatron.studies.tree import Entry


@dataclass(frozen=True)
class Study:
    """A study, as its file, a variant and overrides say.

    Attributes:
        name: the file's, and the variant's: laptop-quick.
        base: the configuration that every run starts from, as written.
        run_dir: where runs, states and tables are.
        settings: over the base, of every run.
        match, learning_rate, batch, decay: None where the file has no such section.
        retries: how often a failed run is started again.
        sources: where settings, and sections, were written, for errors.
    """

    name: str
    file: Path
    about: str
    base: str
    run_dir: Path
    settings: Mapping[str, Any]
    axes: tuple[Axis, ...]
    exclude: tuple[Exclusion, ...]
    pairing: Pairing
    match: Match | None
    learning_rate: LearningRate | None
    batch: Batch | None
    decay: Decay | None
    machine: OnMachine
    limits: Limits
    stop: Stop
    report: Report
    retries: int
    variants: tuple[str, ...]
    sources: Mapping[str, Entry] = field(repr=False, compare=False)

    @cached_property
    def base_config(self) -> Config:
        """The base."""
        return read_config(configuration(self.base, self.file.parent))[0]

    @property
    def budget(self) -> Axis | None:
        """The axis that says how long runs are; None: training.steps does."""
        return next((axis for axis in self.axes if axis.name in BUDGETS), None)

    def axis(self, name: str) -> Axis | None:
        """The axis of that name, where there is one."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def config(self, run: StudyRun) -> Config:
        """A run's configuration."""
        return with_settings(self.base_config, run.settings)

    def error(self, key: str, why: str) -> ConfigError:
        """One line about a key of the file, or about the file where the key is not written there."""
        entry = self.sources.get(key)
        return entry.error(why) if entry else ConfigError(f"{self.file}: {key}: {why}")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A configuration with dotted settings changed. The given one shares with it what did not."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, leaf = key.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    own = sections.pop("", {})
    changed = {
        name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()
    }
    return dataclasses.replace(config, **changed, **own)
