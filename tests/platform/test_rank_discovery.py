"""Every launcher's variables become the same RankInfo; what does not add up is one clear line."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.platform import mpi, ranks
from hcmegatron.platform.ranks import PORTS, RankInfo, discover_ranks, first_host, free_port, tasks_per_node

MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "4321"}
TORCHRUN = MASTER | {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-host-123@1",
    "PMIX_RANK": "1",
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost,n[1-3]",
}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


def test_no_launcher():
    assert discover_ranks({"PATH": "/bin", **MASTER}) is None


def test_torchrun():
    assert discover_ranks(TORCHRUN) == RankInfo(5, 8, 1, 4, "node0", 4321, "torchrun")


def test_set_by_hand():
    found = discover_ranks(without(TORCHRUN, "TORCHELASTIC_RUN_ID"))
    assert found == RankInfo(5, 8, 1, 4, "node0", 4321, "the environment")


def test_open_mpi_on_one_machine_agrees_on_a_port():
    found = discover_ranks(OPEN_MPI)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 4, 1, 4)
    assert found.master_addr == "127.0.0.1" and found.master_port in PORTS and found.source == "Open MPI"
    peer = discover_ranks(OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"})
    other_job = discover_ranks(OPEN_MPI | {"PMIX_NAMESPACE": "prterun-host-124@1"})
    assert peer.master_port == found.master_port != other_job.master_port
    assert discover_ranks(OPEN_MPI | MASTER).master_port == 4321


def test_pmi_of_mpich_intel_and_cray(monkeypatch):
    monkeypatch.setattr(ranks, "launcher_process", lambda: 99)
    found = discover_ranks(PMI)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 4, 1, 4)
    cray = without(PMI, "MPI_LOCALRANKID", "MPI_LOCALNRANKS") | {"PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4"}
    assert discover_ranks(cray) == found
    monkeypatch.setattr(ranks, "launcher_process", lambda: 100)
    assert discover_ranks(PMI).master_port != found.master_port


def test_slurm():
    found = discover_ranks(SLURM)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 1, 2)
    assert found.master_addr == "localhost" and found.master_port in PORTS and found.source == "SLURM"
    assert discover_ranks(SLURM | {"SLURM_JOB_ID": "78"}).master_port != found.master_port
    assert (
        discover_ranks(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}).local_world_size
        == 1
    )


def test_a_batch_script_or_interactive_shell_is_no_launch():
    assert discover_ranks(without(SLURM, "SLURM_STEP_NUM_TASKS")) is None
    assert discover_ranks(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_the_innermost_launcher_counts():
    assert discover_ranks(SLURM | OPEN_MPI).source == "Open MPI"
    assert discover_ranks(SLURM | OPEN_MPI | TORCHRUN).source == "torchrun"
    assert (
        discover_ranks(SLURM | {"SLURM_STEP_NUM_TASKS": "1"} | PMI).source == "PMI"
    )  # mpiexec started its daemon by srun
    assert discover_ranks(SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}).source == "SLURM"  # srun --mpi=pmi2


def test_exports_that_agree_are_fine():
    hand = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MASTER}
    assert discover_ranks(SLURM | hand) == RankInfo(3, 4, 1, 2, "node0", 4321, "SLURM")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, ["RANK", "WORLD_SIZE is not set"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE", "RANK is not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2", **MASTER}, ["LOCAL_RANK is not set"]),
        (without(TORCHRUN, "TORCHELASTIC_RUN_ID", "MASTER_ADDR"), ["MASTER_ADDR"]),
        (without(TORCHRUN, "TORCHELASTIC_RUN_ID", "MASTER_PORT"), ["MASTER_PORT"]),
        (without(TORCHRUN, "LOCAL_RANK"), ["torchrun", "LOCAL_RANK is not set"]),
        (TORCHRUN | {"RANK": "8"}, ["rank 8 of 8", "impossible"]),
        (TORCHRUN | {"LOCAL_RANK": "4"}, ["local rank 4 of 4", "impossible"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, ["of 9", "impossible"]),
        (TORCHRUN | {"RANK": "-1"}, ["RANK = '-1'", "whole number"]),
        (TORCHRUN | {"WORLD_SIZE": "two"}, ["WORLD_SIZE = 'two'", "whole number"]),
        (TORCHRUN | {"MASTER_PORT": "99999"}, ["MASTER_PORT = 99999"]),
        (TORCHRUN | {"MASTER_PORT": "tcp"}, ["MASTER_PORT = 'tcp'"]),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_SIZE"), ["Open MPI", "OMPI_COMM_WORLD_SIZE is not set"]),
        (
            OPEN_MPI | {"PMI_RANK": "0", "PMI_SIZE": "2", **PMI} | {"PMI_SIZE": "2"},
            ["Open MPI", "PMI_SIZE = 2"],
        ),
        (without(PMI, "MPI_LOCALRANKID"), ["PMI", "MPI_LOCALRANKID or PMI_LOCAL_RANK is not set"]),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ["several machines, and mpi4py", "not installed"]),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ["mpirun -x MASTER_ADDR=HOST"]),
        (PMI | {"MPI_LOCALNRANKS": "2", "MASTER_ADDR": "a"}, ["several machines", "MASTER_PORT by hand"]),
        (SLURM | {"WORLD_SIZE": "8"}, ["WORLD_SIZE = 8 contradicts SLURM, which says 4", "unset WORLD_SIZE"]),
        (OPEN_MPI | {"RANK": "0"}, ["RANK = 0 contradicts Open MPI, which says 1"]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"}, ["SLURM_STEP_TASKS_PER_NODE = '2'", "does not fit"]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x"}, ["SLURM_STEP_TASKS_PER_NODE = '2(x'"]),
        (without(SLURM, "SLURM_PROCID"), ["SLURM", "SLURM_PROCID is not set"]),
        (SLURM | {"SLURM_STEP_NODELIST": "no-such-host.invalid"}, ["no-such-host.invalid", "MASTER_ADDR"]),
    ],
)
def test_what_does_not_add_up_is_one_clear_line(environ, words, monkeypatch):
    monkeypatch.setattr(mpi, "_installed", lambda: False)
    monkeypatch.setattr(mpi, "PATIENCE_S", 0)
    with pytest.raises(ConfigError) as caught:
        discover_ranks(environ)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[007-009,12],login", "gpu007"),
        ("rack[3,5]-node[01-04].site", "rack3-node01.site"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_per_node():
    assert (
        tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("4") == [4] and tasks_per_node("") == []
    )


def test_free_ports_are_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port := free_port()))
        assert port in PORTS
        others = [free_port() for _ in range(20)]
        assert port not in others


PRINT = (
    "import dataclasses, json, os; from hcmegatron.platform.ranks import discover_ranks; "
    # in one write, newline included, so that the lines of two ranks do not mix
    "place = json.dumps(dataclasses.asdict(discover_ranks(os.environ))); os.write(1, (place + chr(10)).encode())"
)


@pytest.mark.parametrize("launcher", ["mpirun", "mpiexec.hydra", "torchrun"])
def test_real_launchers(launcher):
    """Two ranks that find the same port, through a wrapper script that a site may put around the program."""
    beside = os.path.join(os.path.dirname(sys.executable), launcher)
    program = beside if os.path.exists(beside) else shutil.which(launcher)
    if program is None:
        pytest.skip(f"{launcher} is not installed")
    wrapped = ["bash", "-c", f"{sys.executable} -c '{PRINT}'; true"]
    command = {
        "mpirun": [program, "--allow-run-as-root", "--oversubscribe", "-n", "2", *wrapped],
        "mpiexec.hydra": [program, "-n", "2", *wrapped],
        "torchrun": [
            program,
            "--nproc-per-node=2",
            "--master-port",
            str(free_port()),
            "--no-python",
            *wrapped,
        ],
    }[launcher]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = [json.loads(line[line.index("{") :]) for line in done.stdout.splitlines() if "{" in line]
    assert sorted(place["rank"] for place in found) == [0, 1], done.stderr
    assert {place["world_size"] for place in found} == {2} and len(
        {place["master_port"] for place in found}
    ) == 1
