"""Scripts as they are rendered: those kept in expected/, by shellcheck, and with values that mean much to a shell."""

import random
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch import launchers, slurm
from launch.job import Job, LaunchError
from launch.template import fill
from tests.launch.jobs import EXPECTED, JOBS, PROGRAM, RUN, WORK, scripts


@pytest.mark.parametrize("name", sorted(scripts()))
def test_scripts_are_those_that_are_kept(name):
    """After a change: python -m tests.launch.write_expected, and look at the difference."""
    assert scripts()[name] == (EXPECTED / name).read_text()


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed: apt-get install shellcheck"
)
def test_shellcheck_has_nothing_to_say():
    own = sorted(path for path in EXPECTED.iterdir() if path.name in scripts())
    done = subprocess.run(["shellcheck", *own], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


WORDS = [
    "$(touch owned)",
    "`id`",
    "'",
    '"',
    "\\",
    "\n",
    " ",
    "  ",
    "*",
    "~",
    "#",
    "%j",
    "%",
    "-",
    "--",
    "$HOME",
]
WORDS += [
    "${x}",
    "!",
    "é",
    "流",
    "&&",
    ";",
    "|",
    "<",
    ">",
    "(",
    ")",
    "[a]",
    "{{run}}",
    "=",
    "\t",
    "\udcff",
    "x",
]


def hostile(count):
    draw = random.Random(7)
    return ["".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(count)]


def test_300_hostile_values_reach_the_program_unchanged(tmp_path):
    """As arguments, values of variables and directories, through the scripts as bash runs them."""
    values = hostile(300)
    show = tmp_path / "show.py"
    show.write_text(
        "import os, sys\nos.write(1, b'\\0'.join(map(os.fsencode, [os.getcwd(), os.environ['V'], *sys.argv[1:]])))"
    )
    for first in range(0, 300, 60):
        own = values[first : first + 60]
        work = tmp_path / own[0].replace("/", "").replace(".", "x")
        work.mkdir(exist_ok=True)
        job = Job(
            (sys.executable, "-IS", str(show), *own),
            tmp_path,
            work,
            environment={"V": own[0]},
            gpus_per_rank=0,
        )
        (tmp_path / "launch").mkdir(exist_ok=True)
        for text in (
            _steps_own_words(job),
            launchers.find("local").render(replace(job, restarts=0))["launch/job.sh"],
        ):
            script = tmp_path / "script.sh"
            script.write_text(text, errors="surrogateescape")
            done = subprocess.run(["bash", script], capture_output=True, check=True, timeout=60)
            found = [word.decode(errors="surrogateescape") for word in done.stdout.split(b"\0")]
            assert found == [str(work), own[0], *own]
    assert not list(tmp_path.rglob("owned"))


def _steps_own_words(job):
    """The SLURM script's own lines that say what runs where, and a run of it in place of srun."""
    text = slurm.render(job)["launch/job.sh"]
    head = text[: text.index("\nset -u\n")]
    return head + '\ncd "$work" || exit 1\n"${program[@]}"\n'


@pytest.mark.parametrize("value", hostile(300)[::6])
def test_hostile_names_in_a_header_are_carried_or_refused(value):
    """SLURM reads its lines of the header itself: what it would not read as it is never gets there."""
    try:
        text = slurm.render(Job(PROGRAM, RUN, WORK, partition=value))["launch/job.sh"]
    except LaunchError as error:
        assert str(error).isprintable() and "partition" in str(error)
    else:
        assert f"#SBATCH --partition={value}" in text.split("\n") and shlex.split(value) == [value]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"run_dir": Path("/runs/a\\b")}, "SLURM takes no"),
        ({"run_dir": Path("/runs/a%jb")}, "SLURM takes no '%' in the names of logs"),
        ({"run_dir": Path("/runs/a\nb")}, "SLURM takes no"),
        ({"environment": {"A B": "1"}}, "'A B' is no name of a variable"),
        ({"command": ("a\0b",)}, "NUL character"),
        ({"container": "image", "mounts": ("/a,b:/c",)}, "cannot be mounted"),
        ({"time_limit": 5}, "signal_seconds = 300: ranks would be told to stop as they start"),
        ({"name": "two\nlines"}, "cannot stand in a job's header"),
    ],
)
def test_what_cannot_be_carried_is_refused_in_one_line(change, said):
    with pytest.raises(LaunchError, match=said) as refused:
        slurm.render(replace(JOBS["slurm-cpu"][1], **change))
    assert str(refused.value).isprintable()


def test_a_template_has_a_value_for_every_name_and_a_name_for_every_value():
    with pytest.raises(KeyError, match=r"array\.sh"):
        fill("array.sh", {"rows": "a"})
    with pytest.raises(KeyError, match="other"):
        fill("array.sh", {"rows": "a", "directives": "b", "other": "c"})


def test_local_is_this_machine_alone():
    job = JOBS["local"][1]
    for change, said in (
        ({"nodes": 2}, "nodes = 2: local is this machine alone"),
        ({"container": "x"}, "container = x"),
        ({"doctor": True}, "doctor = true: only slurm looks at its machines first"),
        (
            {"gpu_visibility": "one"},
            "gpu_visibility = one: ranks that the command starts itself see all GPUs",
        ),
    ):
        with pytest.raises(LaunchError, match=said):
            launchers.find("local").render(replace(job, **change))


def test_local_ranks_that_are_to_have_no_gpu_see_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    job = Job(("printenv", "CUDA_VISIBLE_DEVICES"), tmp_path, tmp_path, restarts=0)
    (tmp_path / "launch").mkdir()
    for count, seen in ((0, "\n"), (1, "3\n")):
        script = launchers.find("local").render(replace(job, gpus_per_rank=count))["launch/job.sh"]
        assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == seen
