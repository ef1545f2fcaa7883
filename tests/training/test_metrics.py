"""The figures of a step, with a clock of the test's own."""

import json
from types import SimpleNamespace

import pytest
import torch

from hcmegatron.config import Config
from hcmegatron.training import metrics, run
from hcmegatron.training.log import Log
from hcmegatron.training.manifest import Progress
from hcmegatron.training.metrics import FIGURES, Metrics, clock
from hcmegatron.training.observer import Observers, Step
from hcmegatron.training.recorder import Recorder
from hcmegatron.training.step import StepResult


class Clock:
    """Says what it is set to, and goes on by itself where it is asked to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def network(steps=200):
    """120 FLOPs a token: 6 x 15 (head 1, attention 4, MLP 2 x 5), 3 s (1 + 1) with s = 4, and the residual's 3 x 2."""
    config = Config()
    m = config.model
    m.layers = m.hidden_size = m.heads = m.head_dim = 1
    m.ffn_hidden_size, m.activation = 5, "gelu"
    config.connection.kind = "residual"
    config.data.sequence_length, config.training.global_batch = 4, 125_000
    config.training.steps, config.run.peak_tflops = steps, 16.0
    return config


def run_of(config, log=None, directory=None, ranks=2):
    log = log or SimpleNamespace(say=lambda *lines: None, report=lambda line: None)
    return SimpleNamespace(
        config=config,
        vocab_size=1,
        ranks=SimpleNamespace(world_size=ranks),
        log=log,
        directory=directory,
        position=Progress(0, 0),
    )


RESULT = StepResult(loss=2.5, grad_norm=0.75, updated=True, samples=range(4), waited=0.5)


def test_what_a_step_is_measured_by(monkeypatch):
    asked, said = [], []

    def peak(configured, dtype):
        asked.append((configured, dtype))
        return 16.0, "a stopwatch"

    monkeypatch.setattr(metrics, "peak_tflops", peak)
    run = run_of(network(), SimpleNamespace(say=said.append))
    assert Metrics(run).work == (500_000, 500_000 * 120 / 1e12, 2, 16.0)
    assert asked == [(16.0, torch.float32)] and said == ["MFU is of 16 TFLOP/s a rank (a stopwatch)"]


def test_memory_is_the_devices_or_the_processs(monkeypatch):
    monkeypatch.setattr(metrics.torch.cuda, "is_available", lambda: False)
    of_process = {metrics.resource.RUSAGE_SELF: SimpleNamespace(ru_maxrss=3 * 2**20)}
    monkeypatch.setattr(metrics.resource, "getrusage", of_process.__getitem__)
    assert metrics.peak_memory_gib() == 3.0
    monkeypatch.setattr(metrics.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(metrics.torch.cuda, "max_memory_allocated", lambda: 5 * 2**29)
    assert metrics.peak_memory_gib() == 2.5


def test_rates_and_utilisation(monkeypatch):
    """500,000 tokens in 2 s; 51 MFLOP in 2 s over two ranks are 12.75 TFLOP/s each where a FLOP counts a million."""
    monkeypatch.setattr(metrics, "training_flops_per_token", lambda config, vocab_size: 102e6)
    monkeypatch.setattr(metrics, "peak_memory_gib", lambda: 1.5)
    clock = Clock()
    observer = Metrics(run_of(network()), clock)
    clock.now += 100.0  # the rehearsal belongs to no step
    observer.on_start()
    clock.now += 3.0  # of which the step had two
    step = Step(1, RESULT, 1e-3, seconds=2.0)
    observer.on_step(step)
    assert step.metrics == {
        "loss": 2.5,
        "lr": 1e-3,
        "grad_norm": 0.75,
        "tokens_per_s": 250_000.0,
        "tflops_per_rank": 12.75,
        "mfu": 12.75 / 16,
        "memory_gib": 1.5,
        "data_wait": 0.25,
        "seconds": 2.0,
    }
    # 199 more steps at 3 s each, evaluation and checkpoints included
    assert step.shown[-1] == "0:00:03 elapsed, 0:09:57 left"
    clock.now += 2.0
    second = Step(2, RESULT, 1e-3, seconds=0.5)
    observer.on_step(second)
    assert second.metrics["tokens_per_s"] == 1_000_000.0 and second.metrics["mfu"] == 51 / 16
    assert second.shown[-1] == "0:00:05 elapsed, 0:08:15 left"  # 198 at 2.5 s


def test_the_log_line_and_metrics_jsonl(monkeypatch, tmp_path, capfd):
    """Both hold every figure; the line has the words of all but `seconds`."""
    monkeypatch.setattr(metrics, "training_flops_per_token", lambda config, vocab_size: 102e6)
    monkeypatch.setattr(metrics, "peak_memory_gib", lambda: 1.5)
    config = network()
    config.training.log_every = 2
    clock = Clock()
    with Log(tmp_path, 200, watched=False) as log:
        whole = run_of(config, log, tmp_path)
        with Observers([Metrics(whole, clock), Recorder(whole)]) as observers:
            observers.on_start()
            for number in (1, 2):
                clock.now += 2.0
                observers.on_step(Step(number, RESULT, 1e-3, seconds=2.0))
    line = (
        "step   2/200  loss 2.5000  lr 1.00e-03  |g| 0.750  250,000 tokens/s  12.7500 TFLOP/s  MFU 79.7%  1.50 GiB"
        "  data 25.0%  0:00:04 elapsed, 0:06:36 left\n"
    )
    said = capfd.readouterr().out
    assert line in said and "step   1/200" not in said  # log_every
    assert "step   1/200" in (tmp_path / "train.log").read_text()
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert list(entry) == ["step", "kind", *(figure.name for figure in FIGURES)]
    assert [figure.name for figure in FIGURES if not figure.words] == ["seconds"]


def test_a_step_is_timed_and_has_its_rate(monkeypatch):
    clock, rates = Clock(), []

    def stepped(seen):
        clock.now += 1.25
        return RESULT

    monkeypatch.setattr(run, "set_learning_rate", lambda *arguments: rates.append(arguments))
    config = network()
    config.optimizer.warmup_steps, config.optimizer.lr, config.optimizer.weight_decay = 20, 1e-2, 0.3
    whole = run_of(config)
    whole.optimizer, whole.stepper, whole.observers = (
        "optimizer",
        SimpleNamespace(step=stepped),
        Observers([]),
    )
    step = run.one_step(whole, 5, 16, clock)
    assert (step.number, step.result, step.seconds) == (5, RESULT, 1.25)
    assert step.learning_rate == pytest.approx(2.5e-3) and rates == [("optimizer", step.learning_rate, 0.3)]


def test_time_in_words():
    assert clock(3725.4) == "1:02:05"
