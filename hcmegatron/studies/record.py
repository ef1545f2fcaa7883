"""study.yaml in a study's directory: which study it is, and what its runs are; for whoever looks at it without the
study's file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hcmegatron.config.errors import ConfigError

FILE = "study.yaml"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Entry:
    """A run directory of a study.

    Attributes:
        trunk: the run whose checkpoint after at_step it begins with; None: it begins anew.
        branch: its name among the branches of its trunk.
        steps, tokens: after which it is finished.
        axes: column -> value.
        evaluation: the kind of its last one.
        digest: of what it learns from its configuration (learnt.py).
    """

    name: str
    trunk: str | None
    branch: str | None
    at_step: int
    steps: int
    tokens: int
    axes: dict[str, Any]
    digest: str
    evaluation: str = "validation"


@dataclass(frozen=True)
class Record:
    """A study's directory as it was written last.

    Attributes:
        baseline: of its report; None where the study names none.
    """

    path: Path
    study: str
    entries: tuple[Entry, ...]
    baseline: str | None = None

    def run_dir(self, name: str) -> Path:
        """Where a run of this name trains."""
        return self.path / "runs" / name

    def config_file(self, name: str) -> Path:
        """The configuration that it trains."""
        return self.path / "configs" / f"{name}.yaml"


def read_record(path: Path) -> Record:
    """The record of a study's directory.

    Raises:
        ConfigError: there is none, or it is not what was written.
    """
    file = path / FILE
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        entries = tuple(Entry(name, **fields) for name, fields in found["runs"].items())
        return Record(path, found["study"], entries, found.get("baseline"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: is no study's directory (there is no {FILE}); begin the study with `hcmegatron study run`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"{file}: is not as it was written; remove it, and `hcmegatron study run` writes it anew"
        ) from None


def write_record(record: Record) -> None:
    """Write it, whole or not at all. OSError where that is not possible."""
    runs = {
        entry.name: {key: value for key, value in vars(entry).items() if key != "name"}
        for entry in record.entries
    }
    found = {"study": record.study, "baseline": record.baseline, "runs": runs}
    text = yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    replace_text(record.path / FILE, f"# Written by `hcmegatron study`, and anew with every call.\n{text}")


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
