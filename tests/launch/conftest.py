"""The SLURM of four nodes that jobs are submitted to, and a run that nothing disturbs."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from launch import record
from launch.queue import local_process
from tests.launch.slurm import cluster
from tests.launch.slurm_jobs import OURS, write_inputs


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run directory of a run on this machine alone, which is going on."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_inputs(folder)
    words = ["-m", "hcmegatron", "launch", "local", "tiny.yaml", "--run.dir=run", "--submit"]
    subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | OURS, check=True, timeout=100)
    yield folder / "run"
    if process := local_process(record.read(folder / "run")):
        os.killpg(process, signal.SIGKILL)


@pytest.fixture
def site(nodes, tmp_path, monkeypatch):
    """The cluster, and a directory with a configuration and its text."""
    for name, value in (nodes.environ | OURS).items():
        monkeypatch.setenv(name, value)
    write_inputs(tmp_path)
    monkeypatch.setenv("HCMEGATRON_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.chdir(tmp_path)
    yield nodes
    for run in [*tmp_path.glob("*/launch/submitted.json"), *tmp_path.glob("*/*/launch/submitted.json")]:
        with suppress(AssertionError):
            nodes.run("scancel", *json.loads(run.read_text())["ids"])
