"""Wheels without pip: a wheel is an archive of what is imported, and of its metadata."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

ALWAYS = ("megatron-core",)  # what is brought is what is meant, whatever is installed


class Wheel(NamedTuple):
    """The parts of a wheel's name that matter here."""

    path: Path
    distribution: str
    version: str
    python: str
    abi: str


def wheel_of(path: Path) -> Wheel:
    """ValueError: it is not named as wheels are."""
    parts = path.name.removesuffix(".whl").split("-")
    if path.suffix != ".whl" or len(parts) not in (5, 6):
        raise ValueError(f"{path}: not the name of a wheel (NAME-VERSION-PYTHON-ABI-PLATFORM.whl)")
    return Wheel(path, parts[0].replace("_", "-").lower(), parts[1], parts[-3], parts[-2])


def wheel_fits(wheel: Wheel, python: tuple[int, int]) -> bool:
    """Whether this version of Python can import it."""
    exact = f"cp{python[0]}{python[1]}"
    tags = wheel.python.split(".")
    pure = any(tag in ("py3", f"py{python[0]}{python[1]}") for tag in tags)
    older = [int(tag[3:]) for tag in tags if tag.startswith("cp3") and tag[3:].isdigit()]
    return pure or exact in tags or (wheel.abi == "abi3" and any(minor <= python[1] for minor in older))


def unpack(folder: Path, into: Path) -> Path:
    """What is in a folder of wheels and not installed; returns `into`, to be imported from.

    Raises:
        ValueError: a wheel is for another Python, no archive, or there are none.
    """
    found = [wheel_of(path) for path in sorted(folder.glob("*.whl"))]
    if not found:
        raise ValueError(f"--wheels {folder}: there are no wheels in it")
    for wheel in found:
        if wheel.distribution not in ALWAYS and _installed(wheel.distribution):
            continue
        if not wheel_fits(wheel, sys.version_info[:2]):
            raise ValueError(
                f"{wheel.path}: made for {wheel.python}, and this is Python {sys.version_info[0]}.{sys.version_info[1]}"
            )
        try:
            with zipfile.ZipFile(wheel.path) as archive:
                archive.extractall(into)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel.path}: {error}; copy it again") from None
    return into


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
