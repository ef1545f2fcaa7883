"""Versions, and what is installed besides: what may be used, what does harm, and the code itself."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from hcmegatron.platform.optional import packages
from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.subject import Subject

CODE = ("hcmegatron", "launch", "schedules")
REQUIRED = ("torch", "megatron-core", "numpy")
_MPI = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


def check(subject: Subject) -> Iterator[Finding]:
    """Required ones, optional ones, and MPI."""
    versions = installed()
    for name in REQUIRED:
        if versions[name] == "not installed":
            yield fault(name, "not installed", f"pip install {name}, in the environment that ranks use")
    yield ok("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    for package in packages():
        if package.alarming:
            yield fault(package.name, package.words.partition("; ")[0], "pip uninstall apex")
        elif package.usable:
            yield ok(package.name, package.words)
        else:
            yield note(package.name, package.words)
    yield mpi(subject)


def mpi(subject: Subject) -> Finding:
    """mpi4py with the library that it loads. Asked of another process, which initialises nothing."""
    if importlib.util.find_spec("mpi4py") is None:
        return note("mpi4py", "not installed; MPI's launchers work without it")
    version = importlib.metadata.version("mpi4py")
    try:
        library = subject.system.run([sys.executable, "-c", _MPI])
    except OSError as error:
        return warning(
            "mpi4py", f"{version} finds no MPI library ({error})", "load the site's MPI, or uninstall mpi4py"
        )
    return ok("mpi4py", f"{version}, over {library.splitlines()[0].rstrip(chr(0)).partition(',')[0]}")


def installed() -> dict[str, str]:
    """By name, versions without importing anything."""
    found = {"Python": platform.python_version()}
    for name in ("hcmegatron", *REQUIRED):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if found["hcmegatron"] == "not installed":  # imported from a source path
        from hcmegatron import __version__

        found["hcmegatron"] = __version__
    return found


def of_torch() -> dict[str, str]:
    """What torch was built with, and the GPU's driver and name. Imports torch."""
    import torch

    found = {"torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["GPU"] = torch.cuda.get_device_name()
    return found


def code_fingerprint() -> str:
    """Of every line of this project's code as it is imported here."""
    digest = hashlib.sha256()
    for package in CODE:
        folders = importlib.util.find_spec(package).submodule_search_locations
        for folder in map(Path, folders):
            for path in sorted(folder.rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
