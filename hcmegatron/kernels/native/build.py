"""Compiles a C file of this folder for this machine and keeps the library for the next process.

Libraries are in HCMEGATRON_CACHE, by default ~/.cache/hcmegatron (XDG_CACHE_HOME). Machines of a cluster share homes,
so a library's name has everything that it depends on in it: sources, options, compiler and processor. It is written
beside its name and moved there, so that ranks which compile at the same time each find a whole one.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent
SECONDS = 120  # that a compiler may take; it needs one
# Sums and products as they are written: bits do not depend on what a compiler makes of them.
OPTIONS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_MACHINE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
_OF_PROCESSOR = ("flags", "Features", "model name", "cpu family", "model", "CPU implementer", "CPU part")


class Unavailable(Exception):
    """There is no library, and why, in words."""


def library(name: str, n: int) -> ctypes.CDLL:
    """The library of `name`.c for n streams, compiled if it is not there yet.

    Raises:
        Unavailable: no compiler, one that fails, or nowhere to put what it makes.
    """
    try:
        return _library(name, n)
    except (OSError, RuntimeError, ValueError) as error:  # no home, no folder for temporary files, an odd CC
        raise Unavailable(f"no compiled kernels: {error}") from error


def _library(name: str, n: int) -> ctypes.CDLL:
    compiler, known_by = _compiler()
    command = [*compiler, *OPTIONS, _MACHINE, f"-DN={n}"]
    file = f"{name}-n{n}-{_key(command, known_by)}.so"
    obstacle = ""
    for folder in _folders():
        try:
            return ctypes.CDLL(str(folder / file))
        except OSError:
            pass  # it is not there, or damaged
        try:
            _compile(command, SOURCES / f"{name}.c", folder / file)
            return ctypes.CDLL(str(folder / file))
        except OSError as error:
            obstacle = obstacle or f"no library in {folder}: {error.strerror or error}"
    raise Unavailable(obstacle)


def _compiler() -> tuple[list[str], str]:
    """The command, and the file by which the compiler is known."""
    if given := shlex.split(os.environ.get("CC", "")):
        if found := shutil.which(given[0]):
            return [found, *given[1:]], found
        raise Unavailable(f"no C compiler: CC={os.environ['CC']} is not found")
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found], found
    if (package := importlib.util.find_spec("ziglang")) and package.origin:
        return [sys.executable, "-m", "ziglang", "cc"], package.origin
    raise Unavailable("no C compiler")


def _compile(command: list[str], source: Path, library: Path) -> None:
    """Raises Unavailable where the compiler fails, OSError where the folder cannot be written."""
    handle, beside = tempfile.mkstemp(prefix=f".{library.stem}-", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        if reason := _failure([*command, str(source), "-o", beside]):
            raise Unavailable(f"the C compiler {command[0]} failed: {reason}")
        os.chmod(beside, 0o755)
        os.replace(beside, library)
    finally:
        Path(beside).unlink(missing_ok=True)


def _failure(command: list[str]) -> str | None:
    """What a command failed with, in one line; None where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next(
        (line for line in said if "error" in line), said[-1] if said else f"exit status {done.returncode}"
    )


def _key(command: list[str], compiler: str) -> str:
    """Of all that the library depends on. A compiler is known by its file: asking it takes longer than loading."""
    known = hashlib.sha256(repr((command, platform.machine(), _processor())).encode())
    found = os.stat(compiler)
    known.update(f"{os.path.realpath(compiler)} {found.st_size} {found.st_mtime_ns}".encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        known.update(source.read_bytes())
    return known.hexdigest()[:16]


def _processor() -> str:
    """What the first processor is and can do; elsewhere than on Linux, the machine's name, which does as well."""
    try:
        lines = []
        with open("/proc/cpuinfo") as file:
            for line in file:
                if not line.strip():
                    break  # the others are alike, and there may be hundreds
                if line.partition(":")[0].strip() in _OF_PROCESSOR:
                    lines.append(line.strip())
        return "\n".join(lines)
    except OSError:
        return f"{platform.processor()} {platform.node()}"


def _folders() -> Iterator[Path]:
    """The cache, and where it cannot be made or written, a folder of this user's among the temporary ones."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = Path(os.environ.get("HCMEGATRON_CACHE") or f"{home}/hcmegatron").expanduser()
    own = Path(tempfile.gettempdir()) / f"hcmegatron-{os.getuid()}"
    for folder in (chosen, own):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        found = folder.stat()
        # what others may write is not loaded
        if found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield folder
    yield Path(tempfile.mkdtemp(prefix="hcmegatron-"))
