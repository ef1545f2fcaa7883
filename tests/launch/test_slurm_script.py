"""SLURM's batch script around commands that stand for SLURM's: which ends of a start are counted as restarts."""

import os
import subprocess

import pytest

from launch import slurm
from launch.job import Job

# What the queue says is in the files state and reason; the steps' texts are lines of the file steps, one after another.
COMMANDS = """#!/bin/bash
cd {folder}
all() {{ kill -"$1" -- "-$SCRIPT"; }}  # a signal to the script and what it has started, as SLURM sends it
case "${{0##*/}} $*" in
squeue*) if rm interrupt 2>/dev/null; then all TERM; fi; case $* in *%T) cat state ;; *%r) cat reason ;; esac ;;
sinfo*) echo idle ;;
scancel*) exit 1 ;;
*hostnames*) printf '%s\n' n1 n2 ;;
srun*--quiet*) if [ -e probed ]; then . ./probed; fi ;;
srun*) trap '' TERM USR1; step=$(head -n 1 steps); sed -i 1d steps; eval "$step" ;;
esac
"""
TAKEN = "echo COMPLETING >state; "
DIED = TAKEN + "echo 'srun: error: Node failure on n2' >&2; "


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run the script once more, as SLURM does with a job that was requeued."""
    setup = (f"export PATH={tmp_path}:$PATH", "export SCRIPT=$$")
    job = Job(("true",), tmp_path, tmp_path, nodes=2, gpus_per_rank=0, restarts=3, setup=setup)
    (tmp_path / "launch").mkdir()
    (script,) = slurm.render(job).values()
    (tmp_path / "job.sh").write_text(script)
    for name in ("squeue", "sinfo", "scancel", "scontrol", "srun"):
        (tmp_path / name).write_text(COMMANDS.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    ours = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}

    def run():
        (tmp_path / "state").write_text("RUNNING\n")
        (tmp_path / "reason").write_text("None\n")
        subprocess.run(
            ["bash", "job.sh"], cwd=tmp_path, env=ours, start_new_session=True, check=False, timeout=30
        )

    return run


@pytest.mark.parametrize(
    ("step", "count"),
    [
        pytest.param(DIED + "exit 1", 2, id="a machine's death, without a signal as yet"),
        pytest.param(DIED + "all TERM; exit 1", 2, id="a machine's death with its signal"),
        pytest.param(DIED + "touch interrupt; exit 1", 2, id="its signal comes as the queue is asked"),
        pytest.param(DIED + "all KILL", 2, id="the script is killed, the machine back at once"),
        pytest.param(f"echo '{TAKEN} all TERM' >probed; exit 1", 2, id="a signal as machines are asked"),
        pytest.param("all TERM; exit 1", 1, id="a preemption, before ranks could save"),
        pytest.param("all TERM; exit 75", 1, id="a preemption"),
        pytest.param(TAKEN + "all TERM; exit 1", 1, id="somebody's requeue"),
        pytest.param("all USR1; exit 75", 0, id="the warning before the time limit"),
        pytest.param("echo TimeLimit >reason; all TERM; sleep 1", 0, id="the time limit, without a warning"),
    ],
)
def test_a_machines_death_is_counted_and_only_a_time_limit_has_restarts_counted_anew(
    step, count, start, tmp_path
):
    (tmp_path / "steps").write_text(f"{step}\nexit 0\n")
    restarts = tmp_path / "launch/restarts"
    restarts.write_text("of an earlier death\n")
    start()
    assert not (tmp_path / "launch/ended").exists()
    start()
    assert (tmp_path / "launch/ended").read_text() == "0 finished\n"
    assert len(restarts.read_text().splitlines()) == count
    assert not (tmp_path / "launch/running").exists()


def test_a_run_whose_restarts_are_used_begins_again_where_ended_is_taken_away(start, tmp_path):
    (tmp_path / "steps").write_text(f"{DIED}all KILL\nexit 0\n")
    (tmp_path / "launch/restarts").write_text("of an earlier death\n" * 3)
    start()
    start()
    assert "3 restarts were used" in (tmp_path / "launch/ended").read_text()
    (tmp_path / "launch/ended").unlink()
    start()
    assert (tmp_path / "launch/ended").read_text() == "0 finished\n"
