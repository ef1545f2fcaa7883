"""Where studies and the configurations that they name are: files, and those that come with the program."""

from __future__ import annotations

import difflib
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import at_home
from hcmegatron.config.packaged import FOLDER, packaged_file

STUDIES = FOLDER / "studies"


def packaged_studies() -> list[str]:
    """The names of those that come with the program."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def study_file(path: Path) -> Path:
    """The file of a path or of a packaged study's name.

    Raises:
        ConfigError: a bare name that is neither.
    """
    name = str(path)
    if path.suffix or path.name != name or path.is_file():
        return path
    if name in packaged_studies():
        return STUDIES / f"{name}.yaml"
    near = difflib.get_close_matches(name, packaged_studies(), 1)
    hint = f"did you mean {near[0]}?" if near else f"packaged are {', '.join(packaged_studies())}"
    raise ConfigError(f"{name}: there is no such file, nor a packaged study of that name; {hint}")


def configuration(name: str, folder: Path) -> Path:
    """The file that a study in `folder` names: relative to it, or a packaged configuration.

    Raises:
        ConfigError: there is none.
    """
    beside = folder / at_home(name)
    if beside.is_file():
        return beside
    if found := packaged_file(name):
        return found
    raise ConfigError(
        f"{name}: there is no file {beside}, nor a packaged configuration of that name; correct it"
    )
