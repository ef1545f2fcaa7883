"""Runs that `launch mpi` starts, from an environment with nothing in it: the losses of other launches, their end."""

import subprocess
import time

import psutil
import pytest

from tests.launch.runs import RUN, configured, losses, start_command
from tests.platform import two_machines
from tests.platform.clean import CLEAN, mpirun
from tests.ranks import run_ranks
from tests.training import workers

STEPS = 3


def test_four_ranks_on_two_machines_have_the_losses_of_four_on_one(tmp_path):
    mpirun()
    if why := two_machines.missing():
        pytest.skip(why)
    text = tmp_path / "text.txt"
    run_ranks(4, workers.run, configured(tmp_path / "one", text, STEPS), **RUN)
    (tmp_path / "hosts").write_text("# two of them\nn0:8\nn0:8\n\nn1 slots=8\nn2\n")
    with two_machines.two_machines(tmp_path) as machines:
        setup = [f"export PRTE_MCA_plm_ssh_agent={machines.ssh}"]
        command = start_command("mpi", configured(tmp_path / "two", text, STEPS), 2, 2, setup=setup)
        done = subprocess.run(
            machines.on(0, *command, tmp_path / "hosts"),
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "two") == losses(tmp_path / "one") and len(losses(tmp_path / "two")) == STEPS
    assert (tmp_path / "two/launch/ended").read_text() == "0 finished, or stopped with a checkpoint\n"


def test_two_ranks_end_when_one_is_killed(tmp_path):
    mpirun()
    text = tmp_path / "text.txt"
    run_ranks(2, workers.run, configured(tmp_path / "local", text, STEPS), **RUN)
    command = start_command("mpi", configured(tmp_path / "run", text, 100000), 1, 2)
    with open(tmp_path / "output", "w") as output:
        script = psutil.Popen(command, env=CLEAN, stdout=output, stderr=output, start_new_session=True)
    members = [script]
    try:
        deadline = time.monotonic() + 100
        while len(losses(tmp_path / "run")) < STEPS:
            assert script.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        members += script.children(recursive=True)
        (victim,) = (member for member in members if member.environ().get("OMPI_COMM_WORLD_RANK") == "1")
        began = time.monotonic()
        victim.kill()
        status = script.wait(timeout=30)
        _, left = psutil.wait_procs(members, timeout=10)
        assert not left and time.monotonic() - began < 10
    finally:
        for member in members:
            if member.is_running():
                member.kill()
    assert status == 137
    assert "a rank died (status 137), and 0 restarts were used" in (tmp_path / "output").read_text()
    assert losses(tmp_path / "run")[:STEPS] == losses(tmp_path / "local")
