"""What the command is started in: no launcher or torchrun's, and a trainer that only writes down its calls."""

import os
import sys
import types
from unittest import mock

import pytest

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC", "OMPI_", "PMI", "SLURM_")


@pytest.fixture
def by_itself(monkeypatch, tmp_path):
    """In an empty directory, without a launcher; what the program sets in the environment is taken back."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith(LAUNCHERS):
                del os.environ[name]
        yield


@pytest.fixture
def torchrun(monkeypatch):
    """This process as rank 1 of 2 under torchrun."""
    place = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1234}
    for name, value in {**place, "MASTER_ADDR": "h", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the trainer; the calls it got."""
    calls = []
    stub = types.ModuleType("hcmegatron.training.run")
    stub.train = lambda *arguments: calls.append(arguments) or 0
    monkeypatch.setitem(sys.modules, "hcmegatron.training.run", stub)
    return calls
