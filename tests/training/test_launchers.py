"""A preemption signal under every launcher, to whom it is sent there: a checkpoint, and nobody is left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.ranks import ROOT

TINY = """
model: {layers: 2, hidden_size: 16, heads: 2, head_dim: 8, ffn_hidden_size: 24, vocab_multiple: 1}
connection: {n: 2}
parallel: {pipeline: 2}
data: {sequence_length: 32, holdout: 0.1}
training: {steps: 100000, global_batch: 2, micro_batch: 1, eval_every: 0, eval_batches: 1}
checkpoint: {save_every: 20}
run: {tensorboard: false, peak_tflops: 0.01}
"""
LAUNCHERS = {
    "the command": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "mpirun": ["--allow-run-as-root", "--oversubscribe", "-np", "2", sys.executable],
}


def family(process):
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, number, whom",
    [
        ("the command", signal.SIGTERM, "all"),
        ("torchrun", signal.SIGUSR1, "all"),  # torchrun dies of it
        ("torchrun", signal.SIGTERM, "launcher"),
        ("mpirun", signal.SIGUSR1, "launcher"),
    ],
)
def test_a_preempted_run_saves_and_leaves_nobody(launcher, number, whom, tmp_path):
    program = shutil.which("mpirun") if launcher == "mpirun" else sys.executable
    if program is None:
        pytest.skip("mpirun is not installed")
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "text.txt").write_text("".join(f"line {n}: {n * n}\n" for n in range(2000)))
    env = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    process = subprocess.Popen(
        [program, *LAUNCHERS[launcher], "-m", "hcmegatron", "train", "tiny.yaml"]
        + ["--data.paths=[text.txt]", "--run.dir=run"],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    started = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("run/checkpoints/step-????????")):  # a save has been before
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        started = family(process)
        for member in started if whom == "all" else started[:1]:
            member.send_signal(number)
        process.wait(timeout=100)
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left
    finally:
        for member in started:
            if member.is_running():
                member.kill()
        process.wait()
    log = (tmp_path / "run/train.log").read_text()
    step = int(log.split("after step ")[1].split(";")[0])
    newest = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())[-1]
    assert "stopped by SIG" in log and newest == f"step-{step:08d}"
    assert re.findall(r"step +(\d+)/100000", log)[-1] == str(step)
    assert "Traceback" not in log
