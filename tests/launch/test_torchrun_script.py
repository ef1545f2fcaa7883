"""The script around a program that stands for torchrun: where they meet, whose restarts count, signals."""

import signal
import time
from dataclasses import replace

import pytest

from launch import launchers
from launch.job import LaunchError
from tests.launch.site_jobs import JOBS
from tests.launch.stand_ins import Stub


@pytest.mark.parametrize(
    ("statuses", "status", "allowed", "words"),
    [
        ("0 0", 0, ["3"], "finished"),
        ("1 3\n0 0", 1, ["3"], "3 of 3 restarts were used"),  # by torchrun itself
        ("1 1\n0 0", 0, ["3", "1"], "finished"),
        ("1 0\n137 0\n1 0\n0 0", 0, ["3", "2", "1", "0"], "finished"),
        ("1 0\n1 0\n1 0\n1 0\n0 0", 1, ["3", "2", "1", "0"], "3 of 3 restarts were used"),
        ("kill 0\n0 0", 0, ["3", "2"], "finished"),  # it died before it had a rank
    ],
)
def test_restarts_of_torchrun_and_its_own_are_counted_together(statuses, status, allowed, words, tmp_path):
    stub = Stub(tmp_path, "torchrun", restarts=3)
    stub.put("statuses", statuses.replace("kill 0", "137 0") + "\n")
    assert stub.run()[0] == status
    assert [call[call.index("--max-restarts") + 1] for call in stub.told] == allowed
    assert stub.ended.startswith(f"{status} ") and words in stub.ended


def test_torchrun_gets_what_ranks_left_for_an_end(tmp_path):
    leaves = ("bash", "-c", 'echo 4 >"$HCMEGATRON_STATUS_FILE"')
    stub = Stub(tmp_path, "torchrun", restarts=3, command=leaves)
    status, said = stub.run()
    assert status == 4 and len(stub.told) == 1 and "ended by the run itself" in said


def test_where_torchruns_meet(tmp_path, monkeypatch):
    stub = Stub(tmp_path, "torchrun", nodes=2, ranks_per_node=4, restarts=1, name="it")
    monkeypatch.delenv("PET_RDZV_CONF", raising=False)
    assert stub.run("gpu1")[0] == 0
    monkeypatch.setenv("PET_NNODES", "1:3")
    stub.put("statuses", "0 0\n")
    assert stub.run("gpu1:777")[0] == 0
    common = ["torchrun", "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    conf = ["--rdzv-id", "it", "--rdzv-conf", "join_timeout=3600"]
    rest = [
        "--nproc-per-node",
        "4",
        "--max-restarts",
        "1",
        "--no-python",
        "bash",
        f"{tmp_path}/launch/rank.sh",
    ]
    assert stub.told[0] == [*common, "gpu1:29400", *conf, "--nnodes", "2", *rest]
    assert stub.told[1] == [*common, "gpu1:777", *conf, "--nnodes", "1:3", *rest]


def test_ranks_below_torchrun_are_told_and_those_to_come_do_not_begin(tmp_path):
    """The first one dies of it, as one does that is still starting; torchrun starts another."""
    command = ("bash", "-c", f"echo >>{tmp_path}/begun; touch {tmp_path}/waiting; exec sleep 60")
    stub = Stub(tmp_path, "torchrun", restarts=3, command=command)
    again = '"${@: -2}" || "${@: -2}"; exit\n'
    stub.put("torchrun", f"#!/bin/bash\nexport TORCHELASTIC_RUN_ID=1 TORCHELASTIC_RESTART_COUNT=0\n{again}")
    script = stub.start()
    end = time.monotonic() + 20
    while not (tmp_path / "waiting").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    said = script.communicate(timeout=20)[0]
    assert script.returncode == 0 and "TERM: ranks are told to save" in said
    assert (tmp_path / "begun").read_text() == "\n"


def test_a_torchrun_that_is_not_there_is_not_tried_again(tmp_path):
    stub = Stub(tmp_path, "torchrun", command=("no-python", "x"), restarts=3)
    status, said = stub.run()
    assert status == 2 and "no-python is not here; load its module" in said and said.count("restart") == 0


def test_several_machines_of_torchrun_are_started_by_hand(tmp_path):
    job = replace(JOBS["torchrun"], run_dir=tmp_path)
    assert launchers.find("torchrun").start_command(job, {})[-1] == "HEAD"
    with pytest.raises(LaunchError, match="on each machine yourself, where HEAD is the address"):
        launchers.find("torchrun").start(job, {})
