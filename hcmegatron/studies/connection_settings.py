"""What a connection was set to, in every arm: as its axes say, as its run's configuration does, or by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hcmegatron.config.types import Loader
from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.results import Arm, Results

Settings = Mapping[str, str]  # `kind`, and the fields of that kind; empty where the kind is not known


def connection_settings(results: Results, directory: Path | None) -> dict[Arm, Settings]:
    """Of every arm.

    Args:
        directory: of the study, whose runs' configurations are read; None: there is none.
    """
    return {arm: _settings(arm, _written(results, arm, directory)) for arm in results.arms}


def _settings(arm: Arm, written: Mapping[str, Any]) -> Settings:
    kind = KINDS.get(str(written.get("kind", arm.kind)))
    if kind is None:
        return {}
    defaults = {field.name: field.default for field in dataclasses.fields(kind.settings)}
    known = {**defaults, **{name: written[name] for name in defaults if name in written}}
    words = {name: _word(value) for name, value in known.items()}
    return {"kind": kind.name, **words, **{name: value for name, value in arm.settings if name in words}}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _written(results: Results, arm: Arm, directory: Path | None) -> Mapping[str, Any]:
    """The `connection` section of one of its runs; empty where none has one: they have not begun, or left no files."""
    runs = {point.group for point in results.points if point.arm == arm} if directory else set()
    for run in sorted(runs):
        try:
            found = yaml.load((directory / "runs" / run / "config.yaml").read_text("utf-8"), Loader)  # type: ignore[operator]
        except (OSError, ValueError, yaml.YAMLError):
            continue
        section = found.get("connection") if isinstance(found, dict) else None
        if isinstance(section, dict):
            return section
    return {}
