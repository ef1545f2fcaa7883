"""The scripts for mpirun and torchrun: as they are kept, by shellcheck, and around programs that stand for both."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hcmegatron.cli import main
from launch import launchers, record
from launch.job import Job, LaunchError
from tests.launch.site_jobs import EXPECTED, JOBS, scripts

HOSTS = "# ours\nn1 slots=8\nn1\nn2:4\nbad\n\nn3\n"
VERSIONS = {
    "openmpi": "mpirun (Open MPI) 5.0.11\n\nReport bugs to",
    "mpich": "HYDRA build details:\n    Version: 5.0.2",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.19",
}
# Says which it is; writes down what it was told; is one rank, with an environment of a local rank; ends as it is told.
STUB = """#!/bin/bash
if [ "$1" = --version ]; then cat {folder}/version; exit; fi
printf '%s\\n' "${{0##*/}}" "$@" >>{folder}/told
echo >>{folder}/told
if [ -e {folder}/wait ]; then
    trap 'echo heard >>{folder}/told; exit 0' USR1
    touch {folder}/waiting
    while :; do sleep 0.05; done
fi
status=$(head -n 1 {folder}/statuses); sed -i 1d {folder}/statuses
if [ "${{status%% *}}" != kill ]; then
    export LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 TORCHELASTIC_RESTART_COUNT=${{status#* }}
    "${{@: -2}}" || exit
fi
exit "${{status%% *}}"
"""


@pytest.mark.parametrize("name", sorted(scripts()))
def test_scripts_are_those_that_are_kept(name):
    """After a change: python -m tests.launch.site_jobs, and look at the difference."""
    assert scripts()[name] == (EXPECTED / name).read_text()


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed: apt-get install shellcheck"
)
def test_shellcheck_has_nothing_to_say():
    own = [EXPECTED / name for name in sorted(scripts())]
    done = subprocess.run(["shellcheck", *own], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


class Stub:
    """A folder with a job's scripts, and an mpirun and torchrun that only write down."""

    def __init__(self, folder, launcher, **changes):
        self.folder = folder
        for name in ("mpirun", "mpiexec.hydra", "torchrun"):
            (folder / name).write_text(STUB.format(folder=folder))
            (folder / name).chmod(0o755)
        self.put("version", VERSIONS["openmpi"])
        self.put("statuses", "0 0\n")
        job = Job(("true",), folder, folder, gpus_per_rank=0, setup=(f"export PATH={folder}:$PATH",))
        self.job = replace(job, **changes)
        for name, text in launchers.find(launcher).render(self.job).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, errors="surrogateescape")

    def put(self, name, text):
        (self.folder / name).write_text(text)

    def start(self, *words):
        return subprocess.Popen(
            ["bash", str(self.folder / "launch/job.sh"), *words], stdout=subprocess.PIPE, text=True
        )

    def run(self, *words):
        """(status, what was said)"""
        process = self.start(*words)
        said = process.communicate(timeout=30)[0]
        return process.returncode, said

    @property
    def told(self):
        """The arguments of each call."""
        path = self.folder / "told"
        return (
            [call.split("\n") for call in path.read_text().rstrip("\n").split("\n\n")]
            if path.exists()
            else []
        )

    @property
    def ended(self):
        return (self.folder / "launch/ended").read_text()


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


@pytest.mark.parametrize("launcher", ["mpi", "torchrun"])
def test_hostile_values_reach_the_program_unchanged(launcher, tmp_path):
    show = tmp_path / "show.py"
    out = tmp_path / "out"
    show.write_text(
        "import os, sys\n"
        f"with open({str(out)!r}, 'wb') as file:\n"
        "    file.write(b'\\0'.join(map(os.fsencode, [os.getcwd(), os.environ['V'], *sys.argv[1:]])))\n"
    )
    words = [
        "$(touch owned)",
        "`id`",
        "'",
        '"',
        "\\",
        "a\nb",
        " ",
        "",
        "*",
        "~",
        "#x",
        "%j",
        "--",
        "$HOME",
        "!",
        "流",
    ]
    words += ["&& x", ";", "|", "<", "{{run}}", "\t", "\udcff", "-n", "[a]"]
    work = tmp_path / "it's $HOME"
    work.mkdir()
    command = ("env", sys.executable, str(show), *words)
    Stub(tmp_path, launcher, command=command, work_dir=work, environment={"V": "$x 'y'"}).run()
    found = [word.decode(errors="surrogateescape") for word in out.read_bytes().split(b"\0")]
    assert found == [str(work), "$x 'y'", *words]
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize(
    ("given", "seen"), [(None, "1"), ("", "1"), ("4,5,6", "5"), ("GPU-a,GPU-b", "GPU-b")]
)
@pytest.mark.parametrize("launcher", ["mpi", "torchrun"])
def test_a_rank_sees_its_own_gpu_alone(launcher, given, seen, tmp_path, monkeypatch):
    show = ("bash", "-c", f'echo "$CUDA_VISIBLE_DEVICES" >{tmp_path}/seen')
    stub = Stub(tmp_path, launcher, command=show, gpus_per_rank=1, gpu_visibility="one")
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert stub.run()[0] == 0
    assert (tmp_path / "seen").read_text() == f"{seen}\n"


@pytest.mark.parametrize(
    ("launcher", "change", "said"),
    [
        ("mpi", {"spare_nodes": 1}, "spare_nodes = 1: mpirun replaces no machine"),
        ("mpi", {"doctor": True}, "doctor = true: only slurm looks at its machines first"),
        ("torchrun", {"doctor": True}, "doctor = true: only slurm looks at its machines first"),
        ("mpi", {"container": "x", "mounts": ("/a,b:/c",)}, "cannot be mounted: Apptainer takes from:to"),
        ("torchrun", {"container": "x", "mounts": ("/a",)}, "cannot be mounted"),
        (
            "torchrun",
            {"gpus_per_rank": 2, "gpu_visibility": "one"},
            "gpus_per_rank = 2 with gpu_visibility = one",
        ),
        ("mpi", {"environment": {"A B": "1"}}, "'A B' is no name of a variable"),
        ("torchrun", {"command": ("a\0b",)}, "NUL character"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(launcher, change, said):
    with pytest.raises(LaunchError, match=said) as refused:
        launchers.find(launcher).render(replace(JOBS["mpi"], **({"gpu_visibility": "all"} | change)))
    assert str(refused.value).isprintable()


def test_several_machines_of_torchrun_are_started_by_hand(tmp_path):
    job = replace(JOBS["torchrun"], run_dir=tmp_path)
    assert launchers.find("torchrun").start_command(job, {})[-1] == "HEAD"
    with pytest.raises(LaunchError, match="on each machine yourself, where HEAD is the address"):
        launchers.find("torchrun").start(job, {})


@pytest.mark.parametrize("launcher", ["mpi", "torchrun"])
def test_a_job_is_started_in_the_background(launcher, tmp_path):
    stub = Stub(tmp_path, launcher)
    started = launchers.find(launcher).start(stub.job, {})
    assert started.launcher == launcher
    os.waitpid(int(started.ids[0]), 0)
    assert stub.ended.startswith("0 finished") and Path(tmp_path / "launch/job.log").exists()


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
