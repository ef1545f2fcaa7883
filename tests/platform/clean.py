"""mpirun, and an environment that has nothing of this process's but what any login has."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT

CLEAN = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": os.environ.get("HOME", "/"),
    "PYTHONPATH": str(ROOT),
}


def mpirun(*options):
    """The words of Open MPI's mpirun, beside this Python or in the PATH."""
    program = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
    if program is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("no mpirun or mpi4py: pip install 'hcmegatron[mpi]'")
    return [program, *(["--allow-run-as-root"] if os.geteuid() == 0 else []), *options]
