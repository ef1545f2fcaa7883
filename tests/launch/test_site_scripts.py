"""The scripts for mpirun and torchrun, alike: as they are kept, by shellcheck, what they refuse and what ranks get."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch import launchers
from launch.job import LaunchError
from tests.launch.site_jobs import EXPECTED, JOBS, scripts
from tests.launch.stand_ins import Stub


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


@pytest.mark.parametrize("launcher", ["mpi", "torchrun"])
def test_a_job_is_started_in_the_background(launcher, tmp_path):
    stub = Stub(tmp_path, launcher)
    started = launchers.find(launcher).start(stub.job, {})
    assert started.launcher == launcher
    os.waitpid(int(started.ids[0]), 0)
    assert stub.ended.startswith("0 finished") and Path(tmp_path / "launch/job.log").exists()
