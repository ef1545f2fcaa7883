"""Loading somebody else's checkpoint runs no code from it."""

import pytest

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
