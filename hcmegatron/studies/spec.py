"""What a study is: one YAML file, read strictly. Every mistake is one line: file, key, value, and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import read_config
from hcmegatron.config.schema import Config
from hcmegatron.studies.axes import BUDGETS, Axis, read_axes
from hcmegatron.studies.exclusions import Exclusion, read_exclusions
from hcmegatron.studies.places import configuration, study_file
from hcmegatron.studies.sections import (
    OPTIONAL,
    SECTIONS,
    Batch,
    Decay,
    LearningRate,
    Limits,
    Match,
    OnMachine,
    Pairing,
    Report,
    Stop,
    read_section,
)
from hcmegatron.studies.tree import OVERRIDE, Entry, Tree, lay_over, override, read_tree, refuse_unknown

if TYPE_CHECKING:
    from hcmegatron.studies.expand import StudyRun

TREES = (*SECTIONS, "settings", "axes", "variants")  # sections whose keys are changed one by one
KEYS = ("about", "base", "run_dir", "retries", "settings", "axes", "exclude", *SECTIONS, "variants")


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


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """A study's file, or one of the packaged ones by name.

    Args:
        overrides: variants of the file and single keys, in this order: `--quick`, `--study.retries=0`,
            `--study.axes.seed=[1, 2]`.

    Raises:
        ConfigError: one line.
    """
    file = study_file(Path(path))
    tree = read_tree(file, TREES, KEYS)
    variants = _section(tree, "variants")
    name = file.stem
    for text in overrides:
        if text.startswith(OVERRIDE):
            override(tree, text, TREES, KEYS)
            continue
        variant = text.removeprefix("--")
        if not text.startswith("--") or variant not in variants:
            there = ", ".join(f"--{known}" for known in variants) or "none"
            raise ConfigError(
                f"{text}: is neither a variant of {file} ({there}) nor {OVERRIDE}KEY=VALUE; correct or leave it out"
            )
        lay_over(tree, variants[variant], TREES, KEYS)
        name = f"{name}-{variant}"
    for variant in variants.values():
        for key, entry in variant.entries().items():
            refuse_unknown(entry, key, [known for known in KEYS if known != "variants"])
    return _study(tree, file, name)


def _study(tree: Tree, file: Path, name: str) -> Study:
    def scalar(key: str, hint: Any, default: Any) -> Any:
        entry = tree.get(key)
        return entry.value(hint) if isinstance(entry, Entry) else default

    base = scalar("base", str, None)
    if base is None:
        raise ConfigError(
            f"{file}: base is missing; name the configuration that every run starts from, like quickstart"
        )
    try:
        config = read_config(configuration(base, file.parent))[0]
    except ConfigError as error:
        raise ConfigError(f"{tree['base'].source}: base = {error}") from None  # type: ignore[union-attr]
    written = _section(tree, "settings")
    settings = {key: _written_setting(key, entry) for key, entry in written.items()}
    axes = read_axes(_section(tree, "axes"), config, with_settings(config, settings), file.parent)
    if not axes:
        raise ConfigError(f"{file}: axes is missing; say what differs from run to run, like seed: [1, 2, 3]")
    exclude = tree.get("exclude")
    retries = scalar("retries", int, 2)
    if retries < 0:
        raise tree["retries"].error("is out of range; it must be 0 or more")  # type: ignore[union-attr]
    sources = {f"settings.{key}": entry for key, entry in written.items()}
    for section in SECTIONS:
        sources |= {f"{section}.{key}": entry for key, entry in _section(tree, section).items()}
    given = {key: read_section(cls, _section(tree, key)) for key, cls in SECTIONS.items()}
    study = Study(
        name=name,
        file=file,
        about=scalar("about", str, ""),
        base=base,
        run_dir=Path(scalar("run_dir", str, f"runs/studies/{name}")),
        settings=settings,
        axes=axes,
        exclude=read_exclusions(exclude, axes) if isinstance(exclude, Entry) else (),
        retries=retries,
        variants=tuple(_section(tree, "variants")),
        sources=sources,
        **{key: None if key in OPTIONAL and key not in tree else value for key, value in given.items()},
    )
    from hcmegatron.studies.contradictions import check_study

    check_study(study)
    return study


def _section(tree: Tree, key: str) -> dict[str, Entry]:
    found = tree.get(key, {})
    assert isinstance(found, dict)
    return found


def _written_setting(key: str, entry: Entry) -> Any:
    if entry.is_mapping:
        inner = next(iter(entry.entries()), "KEY")
        raise entry.error(
            f"is a section; a study's settings are dotted: write {key}.{inner}: VALUE under settings"
        )
    return entry.setting(key)
