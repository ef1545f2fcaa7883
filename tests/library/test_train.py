"""hcmegatron.train: what becomes of its arguments, of mistakes, and of a Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import hcmegatron
from hcmegatron import train_from_python
from hcmegatron.config import ConfigError, load_config
from hcmegatron.platform.collective_failure import Ended
from tests.ranks import ROOT

SMALL = {
    "model": {"layers": 1, "hidden_size": 32, "ffn_hidden_size": 32},
    "moe": {"experts": 0},
    "parallel": {"pipeline": 1, "schedule": "megatron_1f1b"},
    "training": {"steps": 100_000, "eval_batches": 1, "global_batch": 2, "log_every": 1},
    "data": {"sequence_length": 32},
}


@pytest.fixture
def started(monkeypatch):
    """What would be started: the words, and the configuration that the file among them holds."""
    seen = []

    def start(words):
        overrides = [word for word in words[2:] if not word.startswith("--restarts")]
        seen.append((words, load_config(words[1], overrides)))
        return start.status

    start.status = 0
    monkeypatch.setattr(train_from_python, "_in_a_process", start)
    return seen, start


def test_what_is_started_is_what_was_asked_for(started, tmp_path):
    seen, _ = started
    settings = {"training": {"steps": 7}, "data": {"paths": [Path("~/x y"), "b"]}, "kernels": "torch"}
    done = hcmegatron.train("quickstart", restarts=2, run={"dir": tmp_path, "overcommit": True}, **settings)
    ((words, config),) = seen
    assert done == tmp_path and words[:2] == ["train", "quickstart"] and words[-1] == "--restarts=2"
    assert (config.training.steps, config.kernels, config.run.overcommit) == (7, "torch", True)
    assert (
        config.data.paths == [f"{Path.home()}/x y", "b"] and config.model == load_config("quickstart").model
    )


def test_values_are_taken_as_they_are_in_python(started, monkeypatch, tmp_path):
    """NumPy's and torch's numbers are numbers, and a text that YAML would read as something else is that text."""
    monkeypatch.chdir(tmp_path)
    seen, _ = started
    hcmegatron.train(
        "quickstart",
        optimizer={"lr": np.float32(0.5)},
        training={"steps": np.int64(7), "eval_prompt": "1e3", "global_batch": torch.tensor(8)},
        run={"dir": "null", "overcommit": np.bool_(True)},
        data={"paths": ["a: b", "true"]},
    )
    ((_, config),) = seen
    assert (config.optimizer.lr, config.training.steps, config.training.global_batch) == (0.5, 7, 8)
    assert (config.run.dir, config.run.overcommit, config.training.eval_prompt) == ("null", True, "1e3")
    assert config.data.paths == ["a: b", "true"]
    with pytest.raises(
        hcmegatron.ConfigError, match=r"^training.steps: set is no value of a setting; use a number"
    ):
        hcmegatron.train("quickstart", training={"steps": {7}})


def test_a_configuration_of_ones_own(started, tmp_path):
    seen, _ = started
    config = load_config("mhc-27b")
    config.training.steps = 3
    done = hcmegatron.train(config, run={"dir": None})
    assert done.parent == Path("runs") and done.name.startswith("run-")
    config.run.dir = str(done)
    assert seen[0][1] == config


def test_mistakes(started, monkeypatch):
    seen, start = started
    for settings, said in (
        (
            {"training": {"stps": 1}},
            "--training.stps=1: training.stps is not a setting; did you mean training.steps",
        ),
        ({"training": {"steps": 0}}, "--training.steps=0: training.steps = 0 is out of range"),
        ({"training": 1}, "--training=1: training is a section; set one of its keys"),
        ({"connection": {"kind": "mhx"}}, "connection.kind = mhx is not one of"),
        ({"model": {"hidden_size": 7}}, "hidden_size"),
    ):
        with pytest.raises(ConfigError) as error:
            hcmegatron.train("quickstart", **settings)
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="quickstrat: there is no such file, nor a packaged configuration"):
        hcmegatron.train("quickstrat")
    assert seen == []
    start.status = 2
    with pytest.raises(ConfigError, match="quickstart: training was refused; the line above says why"):
        hcmegatron.train("quickstart")
    for status, how in ((75, "was stopped by a signal"), (3, "ended with exit status 3")):
        start.status = status
        with pytest.raises(
            Ended, match=f"the run in runs/quickstart-.* {how}; the lines above say more"
        ) as ended:
            hcmegatron.train("quickstart")
        assert ended.value.status == status


def test_under_a_launcher_this_process_is_the_rank(started, monkeypatch, tmp_path):
    seen, _ = started
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29999")
    with pytest.raises(ConfigError, match=r"run\.dir = null: ranks of a launcher have to agree on it"):
        hcmegatron.train("quickstart")
    here = []
    monkeypatch.setattr(
        "hcmegatron.cli.main", lambda words: here.append(load_config(*words[1:2], words[2:]).run.dir) or 0
    )
    assert hcmegatron.train("quickstart", run={"dir": tmp_path}) == tmp_path
    assert here == [str(tmp_path)] and seen == []


@pytest.mark.ranks
def test_ctrl_c_has_the_run_save_and_is_raised_then(tmp_path):
    settings = SMALL | {"run": {"tensorboard": False, "peak_tflops": 0.01, "dir": str(tmp_path / "run")}}
    program = (
        "import hcmegatron\n"
        f"try: hcmegatron.train('quickstart', **{settings})\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    late = threading.Timer(60, process.kill)  # with which the run ends
    late.start()
    try:
        lines = iter(process.stdout.readline, "")
        assert any(re.match(r"step +2/", line) for line in lines)
        process.send_signal(signal.SIGINT)  # to this process alone
        rest = list(lines)
        assert process.wait(60) == 0
    finally:
        late.cancel()
        process.kill()
        process.stdout.close()
    assert rest[-1] == "interrupted\n"
    (manifest,) = (tmp_path / "run/checkpoints").glob("step-*/manifest.json")
    version = {"hcmegatron": hcmegatron.__version__}
    assert version.items() <= json.loads(manifest.read_text())["environment"].items()
    assert version.items() <= json.loads((tmp_path / "run/environment.json").read_text()).items()
