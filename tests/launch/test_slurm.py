"""Jobs under a real SLURM on this machine: submitted, disturbed in every way, and what they come to."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hcmegatron.cli import main
from launch import array, record, slurm
from launch.job import Job
from launch.queue import attempts, local_process
from launch.status import facts
from tests.launch.slurm import cluster, missing
from tests.ranks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

STEPS = 300
TINY = f"""
model: {{layers: 2, hidden_size: 16, heads: 2, head_dim: 8, ffn_hidden_size: 24, vocab_multiple: 1}}
connection: {{n: 2}}
parallel: {{pipeline: 2}}
data: {{sequence_length: 32, holdout: 0.1, paths: [text.txt]}}
training: {{steps: {STEPS}, global_batch: 2, micro_batch: 1, eval_every: 0, eval_batches: 1, threads: 1}}
checkpoint: {{save_every: 20}}
run: {{tensorboard: false, peak_tflops: 0.01}}
"""
WAITS = "trap 'echo saved; exit 0' USR1; for i in {1..1500}; do sleep 0.2; done; exit 1"
# Rank 0 finds that rank 1 is gone, and ends: srun has only to hear from SLURM that the other machine is dead.
NOTICES = "peer=$SLURM_JOB_NAME.peer; if [ $SLURM_PROCID = 1 ]; then echo $$ >$peer; exec sleep 300; fi; "
NOTICES += "until [ -s $peer ]; do sleep 0.2; done; while kill -0 $(cat $peer); do sleep 0.2; done; exit 1"
# WAITS, and rank 0 leaves its status as a run does that saves.
STOPPED = WAITS.replace("saved;", 'saved; [ $SLURM_PROCID != 0 ] || echo 75 >"$HCMEGATRON_STATUS_FILE";')
# Its first start is another's; its second finishes.
TWICE = (
    "mkdir -p $SLURM_JOB_NAME.first; if mkdir $SLURM_JOB_NAME.first/$SLURM_PROCID 2>/dev/null; then {}; fi; "
)
TWICE += "echo second on $SLURMD_NODENAME"
OURS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run directory of a run on this machine alone, which is going on."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_inputs(folder)
    words = ["-m", "hcmegatron", "launch", "local", "tiny.yaml", "--run.dir=run", "--submit"]
    subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | OURS, check=True, timeout=100)
    yield folder / "run"
    if process := local_process(record.read(folder / "run")):
        os.killpg(process, signal.SIGKILL)


@pytest.fixture
def site(nodes, tmp_path, monkeypatch):
    """The cluster, and a directory with a configuration and its text."""
    for name, value in (nodes.environ | OURS).items():
        monkeypatch.setenv(name, value)
    write_inputs(tmp_path)
    monkeypatch.setenv("HCMEGATRON_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.chdir(tmp_path)
    yield nodes
    for run in [*tmp_path.glob("*/launch/submitted.json"), *tmp_path.glob("*/*/launch/submitted.json")]:
        with suppress(AssertionError):
            nodes.run("scancel", *json.loads(run.read_text())["ids"])


def write_inputs(folder):
    (folder / "cluster.yaml").write_text("partition: p\ngpus_per_rank: 0\n")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "text.txt").write_text("".join(f"line {n}: {n * n}\n" for n in range(2000)))


def launch(*words, capsys):
    """hcmegatron launch; the numbers of its jobs."""
    assert main(["launch", *words, "--submit"]) == 0
    return re.findall(r"job ([\d_]+): hcmegatron status", capsys.readouterr().out)


def stub(run, text, **settings):
    """A job whose ranks run a few lines of shell; its number."""
    run = Path.cwd() / run
    settings = {"command": ("bash", "-c", text), "gpus_per_rank": 0, "partition": "p"} | settings
    job = Job(run_dir=run, work_dir=Path.cwd(), **settings)
    files = record.write_files(run, slurm.render(job), snapshot=False)
    started = slurm.start(job, files)
    record.write(job, started, slurm.start_command(job, files))
    return started.ids[0]


def stub_array(*rows):
    """An array of stubs, each a row's directory and its text; its number."""
    jobs = [
        Job(("bash", "-c", text), Path.cwd() / run, Path.cwd(), gpus_per_rank=0, partition="p")
        for run, text in rows
    ]
    assert array.launch([(job, slurm.render(job)) for job in jobs], snapshot=False, submit=True) == 0
    return record.read(jobs[0].run_dir)["ids"][0].partition("_")[0]


def until(true, limit=240, about=""):
    deadline = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < deadline, about() if callable(about) else about
        time.sleep(0.1)
    return found


def ended(run, limit=240):
    """What the job has said of its end."""
    told = Path(run, "launch/ended")

    def everything():
        logs = [*Path(run, "launch").glob("*.log"), *Path(run, "launch/logs").iterdir()]
        return "\n".join(path.read_text()[-3000:] for path in logs)

    return until(lambda: told.exists() and told.read_text(), limit, everything).strip()


def saved(run):
    return list(Path(run).glob("checkpoints/step-????????"))


def weights(run):
    """Checksums of the tensors' files of the last checkpoint."""
    manifest = Path(run, f"checkpoints/step-{STEPS:08d}/manifest.json")
    found = json.loads(manifest.read_text())["files"]
    return {name: facts for name, facts in found.items() if name.endswith(".distcp")}


def losses(run):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def events(run):
    return [line["event"] for line in attempts(Path(run))]


def started(run):
    """The machines of every start."""
    return [line["nodes"] for line in attempts(Path(run)) if line["event"] == "started"]


def words(run):
    return dict(facts(Path(run)))


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


def left_out_by_slurm(site, job):
    return re.search(r"ExcNodeList=(\S*)", site.run("scontrol", "show", "job", job))[1]


def doctored(run, text, **settings):
    """A stub with a stand-in for doctor, which is a few lines of shell; $4 is its file."""
    program = f'if [ "$1" != doctor ]; then echo "$MASTER_ADDR"; exit; fi; {text}'
    return stub(run, "", command=("bash", "-c", program, "x", "train", "y"), nodes=2, doctor=True, **settings)


def test_what_doctor_finds_bad_is_left_out_of_the_job(site):
    """It looks at spare machines, too. Rank 0 ends with 6, for which srun ends the others."""
    bad = "[ $SLURM_PROCID != 0 ] || { printf %s $SLURM_STEP_NUM_NODES,n1 >$4; exit 6; }; exec sleep 60"
    doctored("run", bad, spare_nodes=1)
    assert ended("run") == "0 finished"
    assert started("run") == ["n2,n3"] and words("run")["left out"] == "3, n1 (launch/exclude)"
    assert Path("run/launch/logs/rank-1.log").read_text() == "127.0.0.1\n"


def test_what_doctor_finds_and_leaving_out_does_not_mend_ends_the_job(site):
    """None of them goes on without doctor's word, or comes back for ever."""
    begin = "[ $SLURM_PROCID = 0 ] || exit 0; "
    told = {
        "faults": ("touch $4; exit 5", "5 doctor found faults that leaving machines out does not mend"),
        "mistake": ("exit 2", "2 doctor found a mistake of the user's"),
        "killed": ("kill -9 $$", "137 doctor did not come to its end, and 1 restarts were used"),
        "few": (
            "printf $SLURMD_NODENAME >$4; exit 6",
            "6 doctor leaves fewer than 2 machines, and 0 restarts",
        ),
    }
    for run, (text, _) in told.items():
        doctored(run, begin + text, restarts=int(run == "killed"))
    for run, (_, words_of_end) in told.items():
        assert ended(run).startswith(words_of_end)
        assert events(run) == ["died"] * (run == "killed") + ["ended"]
    # What an earlier job's doctor has left is not this one's.
    Path("faults/launch/doctor.exclude").write_text("n1")
    doctored("faults", begin + "exit 2")
    assert ended("faults").startswith("2 ") and "left out" not in words("faults")


def test_a_job_is_cancelled_while_doctor_looks_at_it(site, capsys):
    doctored("run", "touch looks; exec sleep 60")
    until(lambda: Path("looks").exists())
    assert main(["cancel", "run"]) == 0
    assert ended("run") == "0 cancelled" and events("run") == ["ended"]


def test_a_chain_leaves_out_what_its_jobs_have_found_bad(site):
    """And the machines of the site's own list. The last job says that none comes after it, and is no end for ever."""
    text = "[ $SLURM_PROCID = 0 ] || exit 0; printf $SLURMD_NODENAME >$4; exit 6"
    job = doctored("run", text, exclude=("n4",), chain=2)
    assert ended("run").startswith(
        "75 fewer than 2 machines are left of n[2-3], in the last job of the chain: "
    )
    assert events("run") == ["died", "chain", "died", "ended"]
    assert words("run")["left out"] == "n1, n2 (launch/exclude)"
    assert left_out_by_slurm(site, str(int(job) + 1)) == "n4,n1"
    Path("run/launch/exclude").unlink()
    script = Path("run/launch/job.sh")
    script.write_text(
        script.read_text().replace("then echo", "then exit 3; echo").replace("; exit 6", "; : >$4")
    )
    site.run("sbatch", f"--chdir={Path.cwd()}/run", str(script))
    until(lambda: Path("run/launch/ended").exists() and ended("run").startswith("3 "))


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


def test_jobs_that_wait_are_taken_out_of_the_queue(site, capsys):
    stub("run", WAITS, ranks_per_node=2, chain=2)
    first, second = json.loads(Path("run/launch/submitted.json").read_text())["ids"]
    site.wait(first, "RUNNING")
    until(lambda: list(Path("run/launch/logs").iterdir()))
    assert main(["cancel", "run"]) == 0
    assert f"job {first} ends after its step, with a checkpoint" in capsys.readouterr().out
    assert ended("run") == "0 cancelled" and site.wait(second, "CANCELLED")
    assert "saved" in Path("run/launch/logs/rank-1.log").read_text()


time_limits = pytest.mark.skipif(
    "SOAK" not in os.environ, reason="waits for a time limit of whole minutes; make soak"
)


@time_limits
@pytest.mark.timeout(600)
def test_ranks_that_do_not_heed_the_warning_are_ended_and_start_again(site):
    job = stub("deaf", TWICE.format("trap '' USR1 TERM; sleep 300"), time_limit=1, signal_seconds=15)
    assert ended("deaf", 500) == "0 finished"
    assert events("deaf") == ["started", "requeued", "started", "ended"]
    site.wait(job, "COMPLETED")


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
