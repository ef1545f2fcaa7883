"""Runs that `launch mpi` starts, from an environment with nothing in it: the losses of other launches, their end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hcmegatron.config import dump_config
from launch import mpi
from launch.job import Job
from tests.platform import two_machines
from tests.platform.clean import CLEAN, mpirun
from tests.ranks import ROOT, run_ranks
from tests.small_configs import put, tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
STEPS = 3


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"line {number}: {number * number}\n" for number in range(2000)))
    return path


def configured(directory, text, steps):
    """A configuration whose learning rate does not depend on how many steps there are to be."""
    config = put(tiny(text, directory), training={"steps": steps}, checkpoint={"save_every": 1, "resume": "auto"})
    return put(config, optimizer={"schedule": "constant"})


def losses(directory):
    """Of the steps that are done."""
    try:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def rendered(config, folder, nodes, ranks_per_node, setup=()):
    """The arguments that start a job's script, once its files are there."""
    directory = Path(config.run.dir)
    (folder / "config.yaml").write_text(dump_config(config))
    job = Job(
        command=(sys.executable, "-m", "hcmegatron", "train", str(folder / "config.yaml")),
        run_dir=directory,
        work_dir=ROOT,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        gpus_per_rank=0,
        restarts=0,
        environment={"OMP_NUM_THREADS": "1"},
        setup=(f"export PATH={Path(mpirun()[0]).parent}:$PATH", *setup),
    )
    for name, content in mpi.render(job).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return mpi.start_command(job, {})


def test_four_ranks_on_two_machines_have_the_losses_of_four_on_one(text, tmp_path):
    if why := two_machines.missing():
        pytest.skip(why)
    run_ranks(4, workers.run, configured(tmp_path / "one", text, STEPS), **RUN)
    (tmp_path / "hosts").write_text("# two of them\nn0:8\nn0:8\n\nn1 slots=8\n")
    with two_machines.two_machines(tmp_path) as machines:
        setup = [f"export PRTE_MCA_plm_ssh_agent={machines.ssh}"]
        command = rendered(configured(tmp_path / "two", text, STEPS), tmp_path, 2, 2, setup)
        done = subprocess.run(
            machines.on(0, *command, tmp_path / "hosts"),
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "two") == losses(tmp_path / "one") and len(losses(tmp_path / "two")) == STEPS
    assert (tmp_path / "two/launch/ended").read_text() == "0 finished\n"


def test_two_ranks_end_when_one_is_killed(text, tmp_path):
    run_ranks(2, workers.run, configured(tmp_path / "local", text, STEPS), **RUN)
    command = rendered(configured(tmp_path / "run", text, 100000), tmp_path, 1, 2)
    with open(tmp_path / "output", "w") as output:
        script = psutil.Popen(command, env=CLEAN, stdout=output, stderr=output, start_new_session=True)
    members = [script]
    try:
        deadline = time.monotonic() + 100
        while len(losses(tmp_path / "run")) < STEPS:
            assert script.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        members += script.children(recursive=True)
        victim = [m for m in members if m.environ().get("OMPI_COMM_WORLD_RANK") == "1"]
        victim[0].kill()
        began = time.monotonic()
        status = script.wait(timeout=30)
        _, left = psutil.wait_procs(members, timeout=10)
        assert not left and time.monotonic() - began < 10
    finally:
        for member in members:
            if member.is_running():
                member.kill()
    assert status == 137
    assert "(status 137), and 0 restarts were used" in (tmp_path / "output").read_text()
    assert losses(tmp_path / "run")[:STEPS] == losses(tmp_path / "local")
