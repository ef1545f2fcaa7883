"""The script around a program that stands for mpirun: its words for every MPI, machines, restarts, signals."""

import os
import signal
import time

import psutil
import pytest

from hcmegatron.cli import main
from launch import launchers, record
from launch.job import LaunchError
from tests.launch.stand_ins import VERSIONS, Stub

HOSTS = "# ours\nn1 slots=8\nn1\nn2:4\nbad\n\nn3\n"
ROOT_ONLY = ["--allow-run-as-root"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(
    ("mpi", "cpus", "options", "hosts"),
    [
        (
            "openmpi",
            None,
            ["-np", "4", "--map-by", "ppr:2:node", "--bind-to", "none", *ROOT_ONLY],
            "{} slots=2",
        ),
        (
            "openmpi",
            6,
            ["-np", "4", "--map-by", "ppr:2:node:PE=6", "--bind-to", "core", *ROOT_ONLY],
            "{} slots=2",
        ),
        ("mpich", None, ["-n", "4", "-ppn", "2", "-bind-to", "none"], "{}:2"),
        ("mpich", 6, ["-n", "4", "-ppn", "2", "-bind-to", "core:6"], "{}:2"),
        ("intel", None, ["-n", "4", "-ppn", "2", "-genv", "I_MPI_PIN", "0"], "{}:2"),
        ("intel", 6, ["-n", "4", "-ppn", "2", "-genv", "I_MPI_PIN_DOMAIN", "6:compact"], "{}:2"),
    ],
)
def test_every_mpirun_is_spoken_to_in_its_own_words(mpi, cpus, options, hosts, tmp_path):
    stub = Stub(tmp_path, "mpi", nodes=2, ranks_per_node=2, cpus_per_rank=cpus, exclude=("bad", "n2"))
    stub.put("version", VERSIONS[mpi])
    stub.put("hosts", HOSTS)
    assert stub.run(str(tmp_path / "hosts"))[0] == 0
    file = ["--hostfile" if mpi == "openmpi" else "-f", f"{tmp_path}/launch/hosts"]
    program = "mpiexec.hydra" if mpi == "intel" else "mpirun"
    assert stub.told == [[program, *file, *options, "bash", f"{tmp_path}/launch/rank.sh"]]
    lines = (tmp_path / "launch/hosts").read_text().splitlines()
    assert lines == [hosts.format("n1"), hosts.format("n3")]


def test_an_mpirun_that_is_none_of_these_is_refused(tmp_path):
    stub = Stub(tmp_path, "mpi")
    stub.put("version", "mpirun of Platform MPI\nmore")
    status, said = stub.run()
    assert status == 2 and "mpirun is of an MPI that is not known: mpirun of Platform MPI; use" in said
    assert not stub.told


def test_machines_come_from_the_queue_or_a_file(tmp_path, monkeypatch):
    stub = Stub(tmp_path, "mpi", nodes=2)
    for name in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    status, said = stub.run()
    assert status == 2 and "2 machines, and no queue says which" in said
    status, said = stub.run(str(tmp_path / "none"))
    assert status == 2 and "none cannot be read" in said
    stub.put("one", "n1\nn1\n")
    status, said = stub.run(str(tmp_path / "one"))
    assert status == 2 and "has 1 machines that may be used, and the job wants 2" in said and not stub.told
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # mpirun asks SLURM itself
    assert stub.run()[0] == 0 and stub.told[-1][1] == "-np"
    stub.put("statuses", "0 0\n")
    stub.put("two", "n1\nn1\nn2\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "two"))
    assert stub.run()[0] == 0 and stub.told[-1][1] == "--hostfile"
    assert (tmp_path / "launch/hosts").read_text() == "n1 slots=1\nn2 slots=1\n"


@pytest.mark.parametrize(
    ("statuses", "status", "calls", "words"),
    [
        ("0 0", 0, 1, "finished"),
        ("1 0\n137 0\n0 0", 0, 3, "finished"),
        ("1 0\n1 0\n1 0\n0 0", 1, 3, "and 2 restarts were used"),
        ("2 0\n0 0", 2, 1, "ended by the run itself"),
        ("3 0\n0 0", 3, 1, "ended by the run itself"),
        ("1 0\n4 0\n0 0", 4, 2, "ended by the run itself"),
    ],
)
def test_mpirun_starts_again_what_has_died_and_nothing_else(statuses, status, calls, words, tmp_path):
    stub = Stub(tmp_path, "mpi", restarts=2)
    stub.put("statuses", statuses + "\n")
    assert stub.run()[0] == status and len(stub.told) == calls
    assert stub.ended.startswith(f"{status} ") and words in stub.ended


def test_mpirun_is_told_to_save_by_either_signal(tmp_path):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        folder = tmp_path / number.name
        folder.mkdir()
        stub = Stub(folder, "mpi")
        stub.put("wait", "")
        script = stub.start()
        end = time.monotonic() + 20
        while not (folder / "waiting").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        script.send_signal(number)
        said = script.communicate(timeout=20)[0]
        assert script.returncode == 0 and f"{number.name[3:]}: ranks are told to save" in said
        assert stub.told[-1] == ["heard"]


def test_an_mpi_job_over_machines_that_nobody_names_is_refused(tmp_path, monkeypatch):
    for name in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    stub = Stub(tmp_path, "mpi", nodes=2)
    with pytest.raises(
        LaunchError, match="nodes = 2: no queue says here which machines they are; list them"
    ) as said:
        launchers.find("mpi").start(stub.job, {})
    assert f"bash {tmp_path}/launch/job.sh HOSTFILE" in str(said.value)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    os.waitpid(int(launchers.find("mpi").start(stub.job, {}).ids[0]), 0)
    assert stub.ended.startswith("0 finished")


@pytest.mark.parametrize(
    ("nodes", "elsewhere"), [(1, ""), (2, "; whether ranks on other machines are is not known")]
)
def test_cancelled_at_once_ends_ranks_in_sessions_of_their_own(
    nodes, elsewhere, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command = ("setsid", "bash", "-c", f"echo $$ >{tmp_path}/rank; exec sleep 60")
    stub = Stub(tmp_path, "mpi", nodes=nodes, restarts=3, command=command)
    started = launchers.find("mpi").start(stub.job, {})
    record.write(stub.job, started, ())
    end = time.monotonic() + 20
    while not (tmp_path / "rank").exists() or not (tmp_path / "rank").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    rank = psutil.Process(int((tmp_path / "rank").read_text()))
    assert os.getsid(rank.pid) == rank.pid
    assert main(["cancel", "--now", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"process {started.ids[0]} and all that it has started here are ended{elsewhere}" in said
    assert psutil.wait_procs([rank], 5)[1] == []
    os.waitpid(int(started.ids[0]), 0)
