"""Weights & Biases: what it is told, by a stand-in for the package; and an offline run, where it is installed."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from hcmegatron.config import Config, ConfigError
from hcmegatron.diagnostics.files import Observation
from hcmegatron.platform import optional
from hcmegatron.training.observer import End, Evaluation, Step
from hcmegatron.training.weights_and_biases import WeightsAndBiases
from tests.ranks import ROOT


class Service:
    """Takes the place of wandb and of the run that it begins. failing: what raises."""

    def __init__(self, failing=()):
        self.failing, self.calls, self.id = failing, [], "abc123"

    def module(self):
        module = ModuleType("wandb")
        module.Settings = lambda **settings: settings
        module.init = lambda **options: self._called("init", options) or self
        return module

    def define_metric(self, name, step_metric=None):
        self._called("define_metric", (name, step_metric))

    def log(self, figures):
        self._called("log", figures)

    def finish(self, exit_code):
        self._called("finish", exit_code)

    def _called(self, name, what):
        self.calls.append((name, what))
        if name in self.failing:
            raise RuntimeError("the service\nis away")


def observer(tmp_path, monkeypatch, service, mode="offline"):
    monkeypatch.setitem(sys.modules, "wandb", service.module())
    config, reports = Config(), []
    config.run.wandb = mode
    run = SimpleNamespace(directory=tmp_path, log=SimpleNamespace(report=reports.append), config=config)
    return WeightsAndBiases(run), reports


def told(watching, error=None):
    step = Step(3, None, 1e-3, 1.0)
    step.add("loss", 2.5)
    watching.on_step(step)
    watching.on_eval(Evaluation(3, [3 * math.log(2)], [SimpleNamespace(bytes=2)]))
    watching.on_observation(Observation(3, 512, 0.1, {"composite_gain_forward_max": 1.5}))
    watching.on_end(End(3, error=error))


def test_what_it_is_told(tmp_path, monkeypatch):
    service = Service()
    watching, reports = observer(tmp_path, monkeypatch, service)
    told(watching)
    (_, options), *calls = service.calls
    assert (options["mode"], options["dir"], options["id"]) == ("offline", tmp_path, None)
    assert options["config"]["model.layers"] == 4
    assert calls == [
        ("define_metric", ("step", None)),
        ("define_metric", ("train/*", "step")),
        ("define_metric", ("validation/*", "step")),
        ("define_metric", ("test/*", "step")),
        ("define_metric", ("diagnostics/*", "step")),
        ("log", {"step": 3, "train/loss": 2.5}),
        ("log", {"step": 3, "validation/loss": 1.5 * math.log(2), "validation/bits_per_byte": 1.5}),
        ("log", {"step": 3, "diagnostics/composite_gain_forward_max": 1.5}),
        ("finish", 0),
    ]
    assert reports == []
    again = Service()
    told(observer(tmp_path, monkeypatch, again, "online")[0], RuntimeError())
    assert again.calls[0][1]["id"] == "abc123" and again.calls[0][1]["resume"] == "allow"
    assert again.calls[-1] == ("finish", 1)


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_service_that_fails_is_reported_once_and_left_out(failing, tmp_path, monkeypatch):
    service = Service([failing])
    watching, reports = observer(tmp_path, monkeypatch, service)
    told(watching)
    assert reports == ["Weights & Biases failed (RuntimeError: the service): training goes on without it"]
    assert [name for name, _ in service.calls][-1] == failing  # nothing more is asked of it


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config()
    optional.require_installed(config)
    config.run.wandb = "offline"
    with pytest.raises(
        ConfigError,
        match=r"run\.wandb = offline: .*hcmegatron\[wandb\].* not installed here; install it .*run\.wandb=off",
    ):
        optional.require_installed(config)


def test_an_offline_run_is_in_the_run_directory(tmp_path):
    pytest.importorskip("wandb", reason="the extra hcmegatron[wandb] is not installed")
    settings = {
        "data.paths": "[text.txt]",
        "run.dir": "run",
        "run.wandb": "offline",
        "run.tensorboard": "false",
        "run.peak_tflops": "1",
        "training.steps": "3",
        "training.global_batch": "2",
        "training.micro_batch": "1",
        "model.layers": "1",
        "model.hidden_size": "16",
        "data.sequence_length": "32",
    }
    (tmp_path / "c.yaml").write_text("{}")
    (tmp_path / "text.txt").write_text("".join(f"line {n}: {n * n}\n" for n in range(400)))
    words = [
        sys.executable,
        "-m",
        "hcmegatron",
        "train",
        "c.yaml",
        *(f"--{k}={v}" for k, v in settings.items()),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        words, cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Weights & Biases failed" not in done.stdout
    (offline,) = (tmp_path / "run/wandb").glob("offline-run-*")
    name = (tmp_path / "run/wandb.id").read_text().strip()
    (file,) = offline.glob("run-*.wandb")
    assert file.name == f"run-{name}.wandb" and file.stat().st_size > 500
    raw = file.read_bytes()
    assert b"train/loss" in raw and b"validation/loss" in raw and b"train/mfu" in raw
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["kind"] == "validation"
