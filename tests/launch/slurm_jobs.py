"""Jobs for the SLURM of tests: small runs and lines of shell, submitted, waited for, and read."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from hcmegatron.cli import main
from launch import array, record, slurm
from launch.job import Job
from launch.queue import attempts
from launch.status import facts
from tests.ranks import ROOT

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
# WAITS, and rank 0 leaves its status as a run does that saves.
STOPPED = WAITS.replace("saved;", 'saved; [ $SLURM_PROCID != 0 ] || echo 75 >"$HCMEGATRON_STATUS_FILE";')
# Its first start is another's; its second finishes.
TWICE = (
    "mkdir -p $SLURM_JOB_NAME.first; if mkdir $SLURM_JOB_NAME.first/$SLURM_PROCID 2>/dev/null; then {}; fi; "
)
TWICE += "echo second on $SLURMD_NODENAME"
OURS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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


time_limits = pytest.mark.skipif(
    "SOAK" not in os.environ, reason="waits for a time limit of whole minutes; make soak"
)
