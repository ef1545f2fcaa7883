"""Runs and a study that train under a real SLURM on this machine: disturbed in every way, and what they come to."""

import json
import os
import re
from pathlib import Path

import psutil
import pytest

from hcmegatron.cli import main
from tests.launch.slurm import missing
from tests.launch.slurm_jobs import (
    STEPS,
    TINY,
    TWICE,
    WAITS,
    ended,
    events,
    launch,
    losses,
    saved,
    started,
    stub,
    time_limits,
    until,
    words,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
# Rank 0 finds that rank 1 is gone, and ends: srun has only to hear from SLURM that the other machine is dead.
NOTICES = "peer=$SLURM_JOB_NAME.peer; if [ $SLURM_PROCID = 1 ]; then echo $$ >$peer; exec sleep 300; fi; "
NOTICES += "until [ -s $peer ]; do sleep 0.2; done; while kill -0 $(cat $peer); do sleep 0.2; done; exit 1"


def weights(run):
    """Checksums of the tensors' files of the last checkpoint."""
    manifest = Path(run, f"checkpoints/step-{STEPS:08d}/manifest.json")
    found = json.loads(manifest.read_text())["files"]
    return {name: facts for name, facts in found.items() if name.endswith(".distcp")}


def ranks_of(run):
    """Processes of this machine that train there."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = process.info["cmdline"] or []
        if line[1:4] == ["-m", "hcmegatron", "train"] and str(run) in line[4]:
            found.append(process)
    return found


def require_as_undisturbed(run, undisturbed):
    """The same losses and weights, to the last bit."""
    until(lambda: (undisturbed / "launch/ended").exists())
    assert len(losses(run)) == STEPS and losses(run) == losses(undisturbed)
    assert len(weights(run)) == 2 and weights(run) == weights(undisturbed)


def test_two_nodes_a_warning_and_a_dead_rank_come_to_the_weights_of_this_machine_alone(
    site, undisturbed, capsys
):
    common = ("slurm", "tiny.yaml", "--nodes", "2")
    (plain,) = launch(*common, "--run.dir=plain", capsys=capsys)
    (warned,) = launch(*common, "--run.dir=warned", capsys=capsys)
    (shot,) = launch(*common, "--run.dir=shot", "--restarts=1", capsys=capsys)
    assert main(["launch", *common, "--run.dir=plain"]) == 2
    assert re.search(rf"job {plain} is (PENDING|RUNNING) already", capsys.readouterr().err)

    until(lambda: saved("warned"), about=lambda: words("warned"))
    site.run("scancel", "--signal=USR1", "--batch", warned)  # as SLURM does before the time limit
    until(lambda: saved("shot"))
    assert f"job {shot} RUNNING on n[" in words("shot")["state"]
    ranks_of(Path.cwd() / "shot")[0].kill()

    for run in ("plain", "warned", "shot"):
        assert ended(run) == "0 finished"
        require_as_undisturbed(run, undisturbed)
    assert events("plain") == ["started", "ended"]
    assert events("warned") == ["started", "requeued", "started", "ended"]
    assert events("shot") == ["started", "died", "started", "ended"]
    for run in ("warned", "shot"):
        (resumed,) = [json.loads(line) for line in Path(run, "restarts.jsonl").read_text().splitlines()]
        assert resumed["restart"] == 1 and resumed["from_step"] in range(20, STEPS)
    assert words("plain")["step"].startswith(f"{STEPS} of {STEPS}, ")
    assert words("warned")["attempts"] == "started 2, requeued 1"
    assert "finished, status 0" in words(undisturbed)["state"]
    main(["logs", "shot", "--errors"])
    said = capsys.readouterr().out
    assert re.search(r"(?m)^job:\n    srun: error: n[1-4]: task [01]: Killed$", said)


def test_machines_that_die_are_replaced(site, undisturbed, capsys):
    """By a spare within the job; through the queue; and that of the batch script itself."""
    launch(
        "slurm",
        "tiny.yaml",
        "--nodes=2",
        "--spare-nodes=1",
        "--exclude=[n1]",
        "--run.dir=spare",
        capsys=capsys,
    )
    queued = stub("queued", TWICE.format(WAITS), nodes=2, restarts=1, exclude=("n1",))
    noticed = stub("noticed", TWICE.format(NOTICES), nodes=2, restarts=1, exclude=("n1",))
    script = stub("script", TWICE.format(WAITS), ranks_per_node=2, restarts=1, exclude=("n2", "n3"))
    until(lambda: saved("spare") and len(list(Path().glob("*.first/*"))) == 6)
    dead = ("n1", "n3")
    for name in dead:
        site.kill_node(name)
    try:
        for run in ("spare", "queued", "noticed", "script"):
            assert ended(run) == "0 finished"
    finally:
        for name in dead:
            site.start_node(name)
    require_as_undisturbed("spare", undisturbed)
    assert started("spare") == ["n2,n3", "n2,n4"]
    assert events("spare") == ["started", "died", "started", "ended"]
    assert words("spare")["left out"] == "n3 (launch/exclude)"
    assert started("queued") == started("noticed") == ["n2,n3", "n2,n4"]
    assert started("script") == ["n1", "n4"]
    for run, job in (("queued", queued), ("noticed", noticed), ("script", script)):
        assert len(Path(run, "launch/restarts").read_text().splitlines()) == 1
        assert "second on n4" in "".join(path.read_text() for path in Path(run, "launch/logs").iterdir())
        site.wait(job, "COMPLETED")
    site.all_idle()


def test_an_array_of_three_runs(site, capsys):
    one = TINY.replace("pipeline: 2", "pipeline: 1").replace(f"steps: {STEPS}", "steps: 4")
    for name in "abc":
        Path(f"{name}.yaml").write_text(
            one.replace("global_batch: 2", f"global_batch: {'abc'.index(name) + 1}")
        )
    files = ("a.yaml", "b.yaml", "c.yaml")
    (job, *_) = launch("slurm", "--array", *files, "--run.dir=sweep", capsys=capsys)
    assert re.fullmatch(r"\d+_0", job)
    for name in "abc":
        assert ended(f"sweep/{name}") == "0 finished"
        assert list(losses(f"sweep/{name}")) == [1, 2, 3, 4]
    assert main(["status", "sweep"]) == 0
    said = capsys.readouterr().out
    assert said.count("4 of 4") == 3 and said.count("finished, status 0") == 3


def test_a_job_is_cancelled_with_a_checkpoint_and_stays_so(site, capsys):
    endless = TINY.replace(f"steps: {STEPS}", "steps: 5000")
    Path("endless.yaml").write_text(endless)
    (job,) = launch("slurm", "endless.yaml", "--nodes=2", "--run.dir=run", capsys=capsys)
    until(lambda: saved("run"))
    assert re.match(r"\d+ of 5000, .* left without evaluations", words("run")["step"])
    assert main(["cancel", "run"]) == 0
    assert f"job {job} ends after its step, with a checkpoint" in capsys.readouterr().out
    assert ended("run") == "0 cancelled"
    newest = max(
        json.loads(path.read_text())["step"] for path in Path("run").glob("checkpoints/*/manifest.json")
    )
    assert newest == max(losses("run"))
    site.wait(job, "COMPLETED")
    assert main(["cancel", "run"]) == 0
    assert "its jobs have ended already" in capsys.readouterr().out


@time_limits
@pytest.mark.timeout(600)
def test_a_time_limit_that_is_reached(site, capsys):
    Path("long.yaml").write_text(TINY.replace(f"steps: {STEPS}", "steps: 1000000"))
    limits = ("--time-limit=2", "--signal-seconds=20")
    (job,) = launch("slurm", "long.yaml", "--nodes=2", *limits, "--run.dir=run", capsys=capsys)
    until(lambda: events("run").count("started") == 2, 400, lambda: words("run"))
    before = max(losses("run"))
    until(lambda: max(losses("run")) > before + 100)
    assert main(["cancel", "run"]) == 0
    assert ended("run") == "0 cancelled" and events("run") == ["started", "requeued", "started", "ended"]
    assert list(losses("run")) == list(range(1, max(losses("run")) + 1))
    site.wait(job, "COMPLETED")


# The mHC paper's study in miniature, with branches; under make soak as it comes with the program.
SOAK = "SOAK" in os.environ
STUDY = [
    "mhc-scaling",
    "--miniature",
    "--study.run_dir=study",
    "--study.machine.gpus=1",
    *("--study.settings.data.paths=[text.txt]", "--study.settings.data.holdout=0.1"),
    *("--study.settings.optimizer.schedule=wsd", "--study.decay.branches=[0.5]"),
    *(() if SOAK else ("--study.exclude=[{kind: [hc, mhc]}, {size: [9b, 27b, 3b-1t]}]",)),
]
STUDY_RUNS = 12 if SOAK else 1


def test_a_study_is_launched_once_and_its_branches_follow_their_runs(site, capsys):
    assert main(["study", "launch", *STUDY, "--submit"]) == 0
    jobs = re.findall(r"slurm job (\S+): hcmegatron status \S*/runs/(\S+)", capsys.readouterr().out)
    names = {name: job for job, name in jobs}
    (trunks,) = {job.partition("_")[0] for name, job in names.items() if "--" not in name}
    branches = {name: job for name, job in names.items() if "--at0.5" in name}
    runs = STUDY_RUNS
    assert len(names) == 2 * runs and [job.partition("_")[2] for job in branches.values()] == list(
        map(str, range(runs))
    )
    held = site.run("scontrol", "show", "job", next(iter(branches.values())))
    assert f"aftercorr:{trunks}_" in held
    assert main(["study", "launch", *STUDY, "--submit"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("nothing to launch\n") and said.err.count("not launched: job ") == 2 * runs
    for name in names:
        assert ended(f"study/runs/{name}") == "0 finished"
    assert main(["study", "launch", *STUDY]) == 0 and "nothing to launch" in capsys.readouterr().out
    assert (
        main(["study", "status", "study"]) == 0
        and f"{2 * runs} runs: {2 * runs} finished" in capsys.readouterr().out
    )
    assert main(["study", "collect", "study"]) == 0
    assert f"{2 * runs} rows, 0 of them diverged" in capsys.readouterr().out
    assert min(losses(f"study/runs/{next(iter(branches))}")) > 1
