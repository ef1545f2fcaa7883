"""Jobs of a few lines of shell under a real SLURM: which ends start them again, what comes of chains and arrays."""

import json
from pathlib import Path

import pytest

from hcmegatron.cli import main
from tests.launch.slurm import missing
from tests.launch.slurm_jobs import (
    STOPPED,
    TWICE,
    WAITS,
    ended,
    events,
    stub,
    stub_array,
    time_limits,
    until,
    words,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.mark.parametrize(
    "text, told, happened",
    [
        ("exit 2", "2 ended by the run itself, see hcmegatron logs --errors", ["started", "ended"]),
        ("exit 3", "3 ended by the run itself, see hcmegatron logs --errors", ["started", "ended"]),
        # rank 1's mistake, for which srun ends rank 0
        ("[ $SLURM_PROCID = 1 ] && exit 4; exec sleep 60", "4 ended by the run itself, see hcmegatron logs --errors",
         ["started", "ended"]),
        ("exit 1", "1 a rank or a machine died, and 1 restarts were used", ["started", "died", "started", "ended"]),
        ("[ $SLURM_PROCID = 0 ] && mkdir once && kill -9 $$; true", "0 finished",
         ["started", "died", "started", "ended"]),
    ],
)  # fmt: skip
def test_what_is_started_again_and_what_is_not(text, told, happened, site):
    run = "a run's $HOME #1"
    job = stub(run, text, nodes=2, restarts=1)
    assert ended(run) == told
    assert events(run) == happened
    site.wait(job, "COMPLETED", "FAILED")
    assert f"{told.partition(' ')[2]}, status {told[0]}" in words(run)["state"]
    assert len(list(Path(run, "launch/logs").iterdir())) == 2


def test_a_chain_goes_on_in_its_next_job_and_ends_with_the_run(site):
    stub("run", TWICE.format(STOPPED), nodes=1, ranks_per_node=2, chain=3)
    first, second, third = json.loads(Path("run/launch/submitted.json").read_text())["ids"]
    until(lambda: len(list(Path().glob("*.first/*"))) == 2)
    assert "PENDING (Dependency)" in words("run")["state"]
    Path("run/launch/restarts").write_text("of a death\n")
    site.run("scancel", "--signal=USR1", "--batch", first)
    assert ended("run") == "0 finished"
    assert site.wait(third, "COMPLETED") and site.wait(second, "COMPLETED")
    assert events("run") == ["started", "chain", "started", "ended"]
    assert Path("run/launch/restarts").read_text() == ""  # it has come to its time limit since
    assert "nothing to do: 0 finished" in Path("run/launch/job.log").read_text()


def test_the_last_row_of_an_array_is_a_job_of_its_own(site, capsys):
    """Its $SLURM_JOB_ID is the array's number, which to SLURM's commands means all rows."""
    number = stub_array(("short/a", WAITS), ("short/b", "true"))
    stub_array(("told/a", WAITS), ("told/b", WAITS))
    assert ended("short/b") == "0 finished"
    until(lambda: all(list(Path(f"told/{row}/launch/logs").glob("*")) for row in "ab"))
    assert main(["cancel", "told/b"]) == 0
    assert ended("told/b") == "0 cancelled"
    assert "saved" in Path("told/b/launch/logs/rank-0.log").read_text()
    assert "RUNNING" in words("told/a")["state"] and "RUNNING" in words("short/a")["state"]
    assert "saved" not in Path("told/a/launch/logs/rank-0.log").read_text()
    assert words("short/b")["state"].startswith(f"job {number}_1 ")
    for run in ("short/a", "told/a"):
        assert main(["cancel", "--now", run]) == 0


def test_jobs_that_wait_are_taken_out_of_the_queue(site, capsys):
    stub("run", WAITS, ranks_per_node=2, chain=2)
    first, second = json.loads(Path("run/launch/submitted.json").read_text())["ids"]
    site.wait(first, "RUNNING")
    until(lambda: list(Path("run/launch/logs").iterdir()))
    assert main(["cancel", "run"]) == 0
    assert f"job {first} ends after its step, with a checkpoint" in capsys.readouterr().out
    assert ended("run") == "0 cancelled" and site.wait(second, "CANCELLED")
    assert "saved" in Path("run/launch/logs/rank-1.log").read_text()


@time_limits
@pytest.mark.timeout(600)
def test_ranks_that_do_not_heed_the_warning_are_ended_and_start_again(site):
    job = stub("deaf", TWICE.format("trap '' USR1 TERM; sleep 300"), time_limit=1, signal_seconds=15)
    assert ended("deaf", 500) == "0 finished"
    assert events("deaf") == ["started", "requeued", "started", "ended"]
    site.wait(job, "COMPLETED")
