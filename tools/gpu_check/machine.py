"""What a machine is: devices, driver, versions, date."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu_check.processes import ROOT
from tools.gpu_check.worker import PhaseContext

PACKAGES = ("megatron.core", "triton", "transformer_engine", "apex", "liger_kernel", "tile_kernels", "pytest")
VARIABLES = ("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_MODULE_LOADING", "LD_PRELOAD", "NCCL_MULTI_RANK_GPU_ENABLE")


def tell(work: PhaseContext) -> None:
    """The facts, as one row."""
    work.facts(facts(work.miniature))


def facts(miniature: bool) -> dict[str, Any]:
    """All of them. `miniature` is what was asked for; without a GPU nothing else can be."""
    import torch

    count = 0 if miniature else torch.cuda.device_count()
    nccl = _nccl() if count else None
    return {
        "miniature": not count,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "host": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": platform.machine(),
            "system": platform.release(),
        },
        "gpus": [_gpu(index) for index in range(count)],
        "driver": _driver() if count else None,
        "nccl": nccl,
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version() if count else None,
            "NCCL": ".".join(map(str, nccl)) if nccl else None,
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _nccl() -> list[int]:
    """The version that is loaded, which LD_PRELOAD may have brought; torch names the one that it was built with."""
    import torch

    number = ctypes.c_int()
    try:
        status = ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except OSError:  # linked into torch itself
        status = 1
    if status:
        return list(torch.cuda.nccl.version())
    return [number.value // 10000, number.value // 100 % 100, number.value % 100]


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"sm_{properties.major}{properties.minor}",
    }


def _version(module: str) -> str | None:
    """None where it is not there. It is not imported: a package may take a minute, or break the process."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # of the package that it is in
        return None
    if spec is None:
        return None
    info = Path(spec.origin or "").parent / "package_info.py"
    if module == "megatron.core" and info.exists():
        return runpy.run_path(str(info))["__version__"].partition("+")[0]  # a source path has it too
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"nvidia-smi: {error}", file=sys.stderr)
        return None
    return said.splitlines()[0].strip() if said.strip() else None


def _commit() -> str:
    """Of the tree, or of the tree that it was copied from."""
    noted = ROOT / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    return commit()


def commit() -> str:
    """By git, with a word where files have been changed since."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
