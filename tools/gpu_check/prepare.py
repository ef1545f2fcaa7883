"""Collect what the check needs on a machine without pip and network: python -m tools.gpu_check prepare --out DIR

DIR then holds this tree, wheels, and run.sh, which runs the check there: bash run.sh. It is at most 64 MiB. Wheels are
fetched by pip, which this machine needs; --megatron takes a wheel of megatron-core, or an unpacked source, instead.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gpu_check import machine
from tools.gpu_check.processes import ROOT
from tools.gpu_check.wheels import wheel_fits, wheel_of

LIMIT = 64 * 2**20  # bytes of the whole folder
TREE = ("configs", "hcmegatron", "schedules", "tests", "tools", "Makefile", "README.md", "pyproject.toml")
# Small, and pure Python but for PyYAML and psutil. A GPU machine's own torch brings numpy and Triton.
NEEDS = (
    *("pyyaml", "psutil", "rich", "markdown-it-py", "mdurl", "pygments"),
    *("pytest", "pytest-timeout", "pluggy", "iniconfig", "packaging"),
)
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
MEGATRON = {False: "megatron-core==0.16.1", True: "megatron-core==0.19.2"}  # by: Python 3.12 or later
RUN = """#!/usr/bin/env bash
# bash run.sh [ARGUMENTS OF python -m tools.gpu_check]. PYTHON is the one that has torch.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=()
case " $* " in *" --out "*|*" --resume "*|*" --list "*|*" --help "*) ;; *) out=(--out "$here/results") ;; esac
export PYTHONPATH="$here/tree${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m tools.gpu_check {BROUGHT} "${out[@]}" "$@"
"""


def main(arguments: Sequence[str]) -> int:
    """0: the folder is ready. 1: it is too large, or something could not be fetched."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory")
    parser.add_argument("--python", default="3.12", help="of the other machine (default: 3.12)")
    parser.add_argument(
        "--megatron", type=Path, help="a wheel of megatron-core, or a folder with megatron/core in it"
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take instead of fetching any")
    parser.add_argument("--nccl", type=Path, help="a newer libnccl.so.2, pruned to the device's architecture")
    asked = parser.parse_args(arguments)
    try:
        prepare(asked.out, asked.python, asked.megatron, asked.wheels, asked.nccl)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(f"{asked.out}: {size(asked.out) / 2**20:.1f} MiB; copy it, and run there: bash run.sh")
    return 0


def prepare(out: Path, python: str, megatron: Path | None, wheels: Path | None, nccl: Path | None) -> None:
    """Fill a new directory.

    Raises:
        ValueError: something does not fit: the whole into its limit, a wheel to the Python.
        subprocess.CalledProcessError: pip has failed, and has said why.
    """
    version = tuple(int(part) for part in python.split("."))
    if len(version) != 2:
        raise ValueError(f"--python {python}: two numbers, such as 3.12")
    out.mkdir(parents=True)
    copy_tree(out / "tree")
    kept = out / "wheels"
    kept.mkdir()
    brought = ['--wheels "$here/wheels"']
    fetched = [] if wheels else list(NEEDS)
    if wheels:
        for path in sorted(wheels.glob("*.whl")):
            shutil.copy2(path, kept)
    if megatron is None and not any(kept.glob("megatron_core-*")):
        fetched.append(MEGATRON[version >= (3, 12)])
    elif megatron and megatron.is_dir():
        if not (megatron / "megatron" / "core").is_dir():
            raise ValueError(f"--megatron {megatron}: there is no megatron/core in it")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(megatron / "megatron" / "core", out / "source" / "megatron" / "core", ignore=ignored)
        brought.append('--source "$here/source"')
    elif megatron:
        shutil.copy2(megatron, kept)
    if fetched:
        fetch(fetched, python, kept)
    if unfit := [path for path in kept.glob("*.whl") if not wheel_fits(wheel_of(path), version)]:
        raise ValueError(f"{unfit[0].name}: not for Python {python}")
    if nccl:
        shutil.copy2(nccl, out / "libnccl.so.2")
        brought.append('--nccl "$here/libnccl.so.2"')
    (out / "run.sh").write_text(RUN.replace("{BROUGHT}", " ".join(brought)))
    if size(out) > LIMIT:
        raise ValueError(f"{out} has {size(out) / 2**20:.1f} MiB, of {LIMIT / 2**20:.0f} that it may have")


def copy_tree(into: Path) -> None:
    """What git knows of this tree, as it is now, and the name of its commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *TREE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # and has not been removed
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    (into / "COMMIT").write_text(machine.commit() + "\n")


def fetch(names: Sequence[str], python: str, into: Path) -> None:
    """Wheels for another machine, by pip."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "-d", str(into)]
    for one in PLATFORMS:
        command += ["--platform", one]
    subprocess.run([*command, *names], check=True)


def size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
