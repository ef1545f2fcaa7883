"""Runs that `launch torchrun` starts: a torchrun that is killed, and a mistake that is not tried again."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress

from hcmegatron.platform.ranks import free_port
from tests.launch import killing
from tests.launch.runs import RUN, configured, start_command
from tests.platform.clean import CLEAN
from tests.ranks import run_ranks
from tests.small_configs import put
from tests.training import workers
from tools.kill_storm.judge import differences

STEPS = 5


def until_listening(place, limit):
    end = time.monotonic() + limit
    while True:
        try:
            socket.create_connection(place, timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_killed_torchrun_comes_back_and_the_weights_are_those_of_an_undisturbed_run(tmp_path):
    """The second machine's: the first one's starts its rank again, and meets the new one."""
    text = tmp_path / "text.txt"
    undisturbed = configured(tmp_path / "undisturbed", text, STEPS)
    run_ranks(2, workers.run, undisturbed, **RUN)
    config = configured(tmp_path / "run", text, STEPS)
    put(config, run={"observers": [f"{killing.__name__}:KillsTorchrun"]})
    command = start_command("torchrun", config, 2, 1, restarts=2)
    conf = {"PET_RDZV_CONF": "join_timeout=100,keep_alive_interval=1,keep_alive_max_attempt=3"}
    place = ("127.0.0.1", free_port())
    machines = []
    for mark in ({}, {killing.MARK: "1"}):
        machines.append(
            subprocess.Popen(
                [*command, "{}:{}".format(*place)],
                env=CLEAN | conf | mark,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        until_listening(place, 60)  # the first one's torchrun holds what they meet at
    try:
        said = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            with suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
    assert [machine.returncode for machine in machines] == [0, 0], "\n----\n".join(said)
    assert "torchrun ended with status 137: restart 1 of 2" in said[1]
    assert "launch: torchrun ended" not in said[0]
    assert any("stopped by SIGRTMIN (a rank's torchrun has ended) after step" in text for text in said)
    assert differences(tmp_path / "run", tmp_path / "undisturbed") == ""


def test_a_mistake_is_said_once_and_has_its_own_status(tmp_path):
    config = configured(tmp_path / "run", tmp_path / "text.txt", STEPS)
    command = start_command("torchrun", config, 1, 2, restarts=5, words=("--training.steps=-1",))
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("training.steps = -1") == 1
    assert (tmp_path / "run/launch/ended").read_text() == "2 ended by the run itself: its output says why\n"


def test_several_machines_want_an_address(tmp_path):
    command = start_command("torchrun", configured(tmp_path / "run", tmp_path / "text.txt", STEPS), 2, 1)
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "2 machines, and no address where they meet" in done.stdout
