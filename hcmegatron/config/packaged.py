"""The configurations that come with the program, by name: `quickstart`, `mhc-27b`.

A path that is there is taken as it is, whatever it is called: a file named `quickstart` in the current directory comes
before the packaged one.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from hcmegatron.config.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"  # in a checkout a link to configs/


def packaged() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def packaged_file(name: str) -> Path | None:
    """The file of one of them, None of any other name."""
    return FOLDER / f"{name}.yaml" if name in packaged() else None


def locate(path: Path) -> Path:
    """The file of a path or of a packaged configuration's name. A path that looks like one is left as it is.

    Raises:
        ConfigError: a bare name that is neither.
    """
    name = str(path)
    if path.suffix or path.name != name:
        return path
    try:
        path.lstat()
        return path
    except FileNotFoundError:
        pass
    except OSError:  # such as a name too long for one, which reading it will say
        return path
    if file := packaged_file(name):
        return file
    near = difflib.get_close_matches(name, packaged(), 1)
    hint = f"did you mean {near[0]}?" if near else f"packaged are {', '.join(packaged())}"
    raise ConfigError(f"{name}: there is no such file, nor a packaged configuration of that name; {hint}")
