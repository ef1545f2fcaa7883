"""hcmegatron launch, status, logs and cancel where there is no SLURM: what they write, say and refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hcmegatron.cli import main
from hcmegatron.config import Config
from launch import launchers, logs, preflight, record
from launch.job import Job
from tests.ranks import ROOT
from tests.small_configs import put

TINY = """
model: {layers: 2, hidden_size: 16, heads: 2, head_dim: 8, ffn_hidden_size: 24, vocab_multiple: 1}
parallel: {pipeline: 2}
training: {steps: 100, global_batch: 8, micro_batch: 1}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    return tmp_path


def launch(*words):
    return main(["launch", *words])


def test_print_writes_nothing_and_shows_everything(here, capsys):
    assert (
        launch("slurm", "tiny.yaml", "--nodes", "2", "--training.steps=7", "--run.dir=my run", "--print") == 0
    )
    said = capsys.readouterr()
    assert "#SBATCH --nodes=2\n" in said.out and "  steps: 7\n" in said.out and "  resume: auto\n" in said.out
    assert said.out.splitlines()[-1] == (
        f"# ---- sbatch --parsable '--chdir={here}/my run' '{here}/my run/launch/job.sh'"
    )
    assert "not planned: --gpu h100 says" in said.err
    assert sorted(path.name for path in here.iterdir()) == ["tiny.yaml"]


def test_without_submit_the_files_are_written(here, capsys):
    assert launch("local", "tiny.yaml", "--run.dir=run", "--snapshot", "--environment=A=$HOME") == 0
    assert f"bash {here}/run/launch/job.sh" in capsys.readouterr().out
    script = Path("run/launch/job.sh").read_text()
    assert "env 'A=$HOME' sh -c 'export PYTHONPATH=" in script
    assert f" {here}/run/launch/code {sys.executable} -P -m hcmegatron train" in script
    assert Path("run/launch/code/hcmegatron/cli.py").read_text() == (ROOT / "hcmegatron/cli.py").read_text()
    assert not list(Path("run").rglob("__pycache__")) and record.read(Path("run")) is None


@pytest.mark.parametrize(
    "words, said",
    [
        (["slurm", "tiny.yaml", "--nodes=3"], "world size 3 is not a multiple of 2"),
        (["slurm", "tiny.yaml", "--nodes=2", "--nodes=2"], "--nodes 2: is given twice, as 2 before"),
        (["slurm", "tiny.yaml", "--node=2"], "node is not a setting"),
        (["slurm", "tiny.yaml", "tiny.yaml", "--nodes=2"], "--array makes each a run of its own"),
        (["slurm", "tiny.yaml", "--array", "--nodes=2"], "--array needs --run.dir=DIR"),
        (
            ["slurm", "tiny.yaml", "--array", "--nodes=2", "--run.dir=r", "--chain=2"],
            "chain = 2: an array's rows",
        ),
        (["local", "tiny.yaml", "--array"], "--array: local has no arrays"),
        (["local", "tiny.yaml", "--ranks-per-node=4"], "ranks_per_node = 4: local starts the 2 ranks"),
        (
            ["slurm", "tiny.yaml", "--nodes=2", "--cluster=none.yaml"],
            "none.yaml: cannot be read as a cluster file",
        ),
        (["slurm", "tiny.yaml", "--nodes=2", "--gpu=h1"], "h1"),
        (["slurm", "tiny.yaml", "--nodes=2", "--run.dir=tiny.yaml"], "run.dir = .*tiny.yaml cannot be used"),
        (["nobody", "tiny.yaml"], "invalid choice: 'nobody'"),
        (["slurm", "tiny.yaml", "--print", "--submit"], "not allowed with argument --print"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words, said, here, capsys):
    before = sorted(here.rglob("*"))
    assert launch(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("hcmegatron: error: ")
    assert re.search(said, lines[-1]), lines[-1]
    assert sorted(here.rglob("*")) == before


def test_an_array_writes_a_run_directory_for_each(here, capsys):
    Path("sub").mkdir()
    Path("sub/tiny.yaml").write_text(TINY.replace("steps: 100", "steps: 3"))
    Path("other.yaml").write_text(TINY)
    files = ("tiny.yaml", "sub/tiny.yaml", "other.yaml")
    assert launch("slurm", "--array", *files, "--nodes=2", "--run.dir=sweep", "--snapshot") == 0
    assert f"sbatch --parsable --chdir={here}/sweep {here}/sweep/launch/array.sh" in capsys.readouterr().out
    script = Path("sweep/launch/array.sh").read_text()
    assert "#SBATCH --array=0-2\n" in script and "#SBATCH --job-name=sweep\n" in script
    for name, steps in (("tiny-0", 100), ("tiny-1", 3), ("other", 100)):
        assert f"    {here}/sweep/{name}\n" in script
        assert f"  steps: {steps}\n" in Path(f"sweep/{name}/launch/config.yaml").read_text()
        assert Path(f"sweep/{name}/launch/code/hcmegatron/cli.py").exists()


def test_a_directory_with_a_run_is_continued_only_where_that_was_asked_for(here, capsys):
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text("")
    words = ("slurm", "tiny.yaml", "--nodes=2", "--run.dir=run", "--print")
    assert launch(*words) == 2
    assert (
        "already in use; choose another, or continue it with checkpoint.resume=auto"
        in capsys.readouterr().err
    )
    assert launch(*words, "--checkpoint.resume=required") == 0
    assert "  resume: required\n" in capsys.readouterr().out


def test_without_slurm_submission_says_so(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch("slurm", "tiny.yaml", "--nodes=2", "--run.dir=run", "--submit") == 2
    assert (
        "sbatch: No such file or directory; submit on a machine that has SLURM's" in capsys.readouterr().err
    )
    assert Path("run/launch/job.sh").exists() and not Path("run/launch/submitted.json").exists()


def test_a_plan_that_does_not_fit_is_refused(here, capsys):
    small, large = (str(ROOT / f"configs/{name}.yaml") for name in ("quickstart", "olmo-7b"))
    assert launch("slurm", small, "--nodes=2", "--gpu=h100", "--print", "--run.dir=run") == 0
    assert re.search(r"planned: fits, .* GiB on the fullest rank; .* s a step", capsys.readouterr().err)
    refused = ("slurm", large, "--nodes=1", "--gpu=h100", "--print", "--run.dir=run")
    assert launch(*refused) == 2
    assert re.search(r"error: planned: does not fit, .* run.overcommit=true", capsys.readouterr().err)
    assert launch(*refused, "--run.overcommit=true") == 0


def test_groups_that_leave_a_machine_are_said():
    config = put(Config(), parallel={"tensor": 8, "expert": 4, "expert_tensor": 1})
    assert preflight.placement(config, 16, 8) == []
    (said,) = preflight.placement(config, 16, 4)
    assert said.startswith("parallel.tensor: groups of 8 ranks do not stay inside machines of 4")
    assert len(preflight.placement(config, 18, 6)) == 2
    assert preflight.placement(config, 6, 6) == []


def test_the_warning_before_the_time_limit_is_of_the_runs_own_steps(tmp_path):
    assert preflight.signal_seconds(tmp_path) is None
    lines = [json.dumps({"step": n, "kind": "train", "seconds": 1e6 if n < 60 else 20.0}) for n in range(100)]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([*lines, '{"step": 101, "kind": "validation"}', '{"st'])
    )
    assert preflight.signal_seconds(tmp_path) == 60 + 2 * 20 + 5 * 20
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "seconds": 0.1}\n')
    assert preflight.signal_seconds(tmp_path) == 60 + 30


RANK_0 = """step 1/9  loss 5.5
hcmegatron: rank 0 of 3 failed:
Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
RuntimeError: [rank 0] Connection closed by peer
"""
RANK_1 = """hcmegatron: rank 1 of 3 failed:
Traceback (most recent call last):
  File "b.py", line 7, in h
    raise ValueError("the cause")
ValueError: the cause
done
"""


def test_logs_say_the_cause_first_and_the_same_once(here, capsys):
    folder = Path("run/launch/logs")
    folder.mkdir(parents=True)
    texts = {"logs/rank-0.log": RANK_0, "logs/rank-1.log": RANK_1}
    texts["logs/rank-10.log"] = RANK_0.replace("rank 0", "rank 10")
    texts["job.log"] = "launch: job 7\nsrun: error: n1: task 1: Exited with exit code 1\n"
    for order, (name, text) in enumerate(texts.items()):
        path = folder.parent / name
        path.write_text(text)
        os.utime(path, (order, order))
    assert list(logs.logs(Path("run"))) == [None, 0, 1, 10]
    found = logs.grouped(logs.errors(Path("run")))
    assert [(whose, text.splitlines()[-1]) for whose, text in found] == [
        ("rank 1", "ValueError: the cause"),
        ("job", "srun: error: n1: task 1: Exited with exit code 1"),
        ("ranks 0, 10", "RuntimeError: [rank 0] Connection closed by peer"),
    ]
    assert found[0][1].splitlines()[0] == "hcmegatron: rank 1 of 3 failed:"
    assert main(["logs", "run", "--rank", "1"]) == 0
    assert capsys.readouterr().out == RANK_1
    assert main(["logs", "run", "--rank", "2"]) == 2
    assert "--rank 2: run has no log of it; it has ranks 0, 1, 10" in capsys.readouterr().err
    assert main(["logs", "run", "--errors"]) == 0
    assert "loss 5.5" not in capsys.readouterr().out
    assert main(["logs", "run"]) == 0
    said = capsys.readouterr().out
    assert said.index("the cause") < said.index("[job] launch: job 7") < said.index("[rank 0] step 1/9")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_where_no_run_is(verb, here, capsys):
    assert main([verb, "nothing"]) == 2
    assert "name a run directory" in capsys.readouterr().err


def test_a_run_started_by_hand_is_seen_and_cancelled_by_its_lock(here, capsys):
    Path("run").mkdir()
    (here / "run/metrics.jsonl").write_text('{"step": 25, "kind": "train", "seconds": 2.0}\n')
    (here / "run/config.yaml").write_text(TINY)
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert main(["status", "run"]) == 0
        said = capsys.readouterr().out
        assert f"running on this machine, rank 0 is process {holder.pid}" in said
        assert "25 of 100, 2 s each, 0:02:30 left without evaluations and saves" in said
        assert launch("local", "tiny.yaml", "--run.dir=run", "--checkpoint.resume=auto") == 2
        assert "a run is going on there" in capsys.readouterr().err
        assert main(["cancel", "run"]) == 0
        assert holder.wait(10) == -10  # SIGUSR1
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()
    assert main(["cancel", "run"]) == 0
    assert "nothing runs there on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(("site", "seen"), [({}, "/code:/mine"), ({"PYTHONPATH": "/site"}, "/code:/site")])
def test_a_copy_of_the_code_comes_before_the_users_own_path(site, seen, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    job = Job(
        ("printenv", "PYTHONPATH"), tmp_path, tmp_path, code=Path("/code"), environment=site, restarts=0
    )
    (tmp_path / "launch").mkdir()
    script = launchers.find("local").render(job)["launch/job.sh"]
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == f"{seen}\n"
    monkeypatch.delenv("PYTHONPATH")
    seen = seen.removesuffix(":/mine")
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == f"{seen}\n"


def test_an_environment_inside_of_another_repository_is_not_of_its_commit(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *words], check=True
        )

    package = tmp_path / ".venv/site/hcmegatron/__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "theirs")
    monkeypatch.setattr(record, "ROOT", package.parents[1])
    assert record.code() == ({"path": str(package.parents[1]), "commit": "", "changed": ""}, "")
    git("add", "-f", str(package))
    assert len(record.code()[0]["commit"]) == 40


def test_doctor_takes_no_value_and_the_cluster_files_can_be_taken_back(here, capsys):
    words = ("slurm", "--nodes=2", "--run.dir=run", "--print")
    assert launch(*words, "--doctor", "tiny.yaml") == 0
    assert "--exclude-bad" in capsys.readouterr().out
    Path("site.yaml").write_text("doctor: true\n")
    assert launch(*words, "--cluster=site.yaml", "--no-doctor", "tiny.yaml") == 0
    assert "--exclude-bad" not in capsys.readouterr().out


def test_what_a_launcher_has_no_use_for_is_said(here, capsys):
    given = ("--cpus-per-rank=3", "--exclude=n1", "--time-limit=9")
    for launcher, more in (("local", ()), ("torchrun", ("--ranks-per-node=2",))):
        assert launch(launcher, "tiny.yaml", "--run.dir=run", "--print", *more, *given) == 0
        said = f"warning: time_limit, cpus_per_rank, exclude: launch {launcher} does not heed that"
        assert said in capsys.readouterr().err
    assert launch("mpi", "tiny.yaml", "--run.dir=run", "--print", "--ranks-per-node=2", *given) == 0
    assert "warning: time_limit: launch mpi does not heed that" in capsys.readouterr().err
    assert launch("slurm", "tiny.yaml", "--run.dir=run", "--print", "--nodes=2", *given) == 0
    assert "does not heed" not in capsys.readouterr().err


HOLD = (
    "import fcntl, time; f = open('run/.lock', 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError, 2, "run: process {pid} is {owner}'s; have {owner} or root cancel it"),
        (ProcessLookupError, 0, "run: process {pid} has ended meanwhile"),
    ],
)
def test_a_run_that_cannot_be_told(error, status, said, here, capsys, monkeypatch):
    Path("run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        owner = psutil.Process(holder.pid).username()

        def refuse(*_):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", refuse)
            assert main(["cancel", "run"]) == status
        assert said.format(pid=holder.pid, owner=owner) in "".join(capsys.readouterr())
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()
