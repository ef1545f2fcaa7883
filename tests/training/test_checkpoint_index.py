"""Loading somebody else's checkpoint runs no code from it."""

import io
from pathlib import PosixPath

import pytest

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.training import checkpoint_index
from tests.ranks import run_ranks
from tests.training import checkpoint_workers

RUN = {"preload": ("tests.training.workers",), "timeout": 120}


@pytest.mark.ranks
def test_a_checkpoint_that_asks_for_something_to_be_run_is_refused(tmp_path):
    (said,) = run_ranks(1, checkpoint_workers.malicious, tmp_path, **RUN)
    assert said["nothing"] == "[1.0, 1.0, 1.0, 1.0]"
    asked = ".metadata asks for posix.system, which is refused: reading a checkpoint runs no code"
    assert said[".metadata"] == f"UnsafeIndex: {asked}"
    assert said["__0_0.distcp"].startswith("UnpicklingError: Weights only load failed")


def test_a_path_is_one_by_whatever_name_a_python_has_it():
    """Python 3.13 writes pathlib._local, and 3.12 pathlib."""
    for module in ("pathlib", "pathlib._local"):
        written = io.BytesIO(f"c{module}\nPosixPath\n(S'a'\ntR.".encode())
        assert checkpoint_index._Unpickler(written).load() == PosixPath("a")
