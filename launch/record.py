"""What a job is started from, for whoever asks later: the code and its changes, versions, the job, its numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import hcmegatron
from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started

FILE = f"{FOLDER}/submitted.json"
DIFF = f"{FOLDER}/code.diff"
SNAPSHOT = f"{FOLDER}/code"
ROOT = Path(hcmegatron.__file__).parents[1]  # where this program's own code is
PACKAGES = tuple(name for name in ("hcmegatron", "launch", "schedules") if (ROOT / name).is_dir())
_OF_LAST_JOB = (
    "submitted.json",
    "ended",
    "cancel",
    "running",
    "restarts",
)  # beside what a job adds to, such as logs


def code() -> tuple[dict[str, str], str]:
    """Where the code is and its commit, and its changes since then as a diff; outside of its repository no commit: an
    environment inside of another one is not of that one's commit."""
    tracked = _git("ls-files", "--error-unmatch", "hcmegatron/__init__.py")
    commit = _git("rev-parse", "HEAD").strip() if tracked else ""
    changes = _git("diff", "HEAD", "--", *PACKAGES) if commit else ""
    return {"path": str(ROOT), "commit": commit, "changed": DIFF if changes else ""}, changes


def versions() -> dict[str, str]:
    """Of Python and of what is installed, on the machine that submits; the run's own are in environment.json."""
    found = {"python": platform.python_version(), "hcmegatron": hcmegatron.__version__}
    for name in ("torch", "megatron-core", "triton", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_files(run_dir: Path, files: Mapping[str, str], snapshot: bool) -> dict[str, Path]:
    """Write a job's files, and forget what the one before has left.

    Args:
        snapshot: copy the code too, for a job that is to run what is there now.

    Raises:
        LaunchError: they cannot be written.
    """
    paths = {name: run_dir / name for name in files}
    try:
        (run_dir / FOLDER / "logs").mkdir(parents=True, exist_ok=True)
        for name in _OF_LAST_JOB:
            (run_dir / FOLDER / name).unlink(missing_ok=True)
        for name, text in files.items():
            paths[name].write_text(text, encoding="utf-8", errors="surrogateescape")
        shutil.rmtree(run_dir / SNAPSHOT, ignore_errors=True)
        for package in PACKAGES if snapshot else ():
            target = run_dir / SNAPSHOT / package
            shutil.copytree(ROOT / package, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    except OSError as error:
        raise LaunchError(
            f"run.dir = {run_dir}: {error.filename or run_dir} cannot be written: {error.strerror}; choose another"
        ) from None
    return paths


def write(job: Job, started: Started, command: tuple[str, ...]) -> None:
    """submitted.json, and the changes of the code."""
    facts, changes = code()
    (job.run_dir / DIFF).write_text(changes, encoding="utf-8")
    entry = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "launcher": started.launcher,
        "ids": started.ids,
        "host": platform.node(),
        "start": command,
        "code": facts,
        "versions": versions(),
        "job": {
            name: str(value) if isinstance(value, Path) else value for name, value in _plain(job).items()
        },
    }
    (job.run_dir / FILE).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def read(run_dir: Path) -> dict[str, Any] | None:
    """submitted.json; None where this run was not launched, or the file is not whole."""
    try:
        entry = json.loads((run_dir / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and {"launcher", "ids"} <= entry.keys() else None


def _plain(job: Job) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return ""
    return "" if done.returncode else done.stdout
