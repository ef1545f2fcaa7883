"""Whole runs of the command: a signal, a rival for the directory, the same bits afterwards, TensorBoard read back."""

import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hcmegatron.config.load import dump_config
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import real_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 200}
STEPS = 60


def arguments(text, tmp_path, name):
    config = tiny(text, tmp_path / name, parallel={"pipeline": 1}, training={"steps": STEPS, "threads": 1})
    config.checkpoint.save_every, config.training.eval_every = 0, 30
    config.run.tensorboard = True
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump_config(config))
    return ["train", str(file)], tmp_path / name


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """An uninterrupted run: its directory and the tensors of its last checkpoint."""
    words, directory = arguments(text, tmp_path_factory.mktemp("whole"), "run")
    ((status, tensors),) = run_ranks(1, real_workers.trained, words, directory, **RUN)
    assert status == 0 and len(tensors) > 20
    return directory, tensors


@pytest.mark.ranks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_saves_and_the_run_resumes_with_the_same_bits(number, text, whole, tmp_path):
    words, directory = arguments(text, tmp_path, "run")
    ((rival, said, status, log, again, tensors),) = run_ranks(
        1, real_workers.signalled, words, directory, int(number), **RUN
    )
    assert status == 75  # EX_TEMPFAIL: the same command goes on
    *_, stopped, last = log.splitlines()
    assert stopped.startswith(f"stopped by {number.name} after step ")
    assert stopped.endswith("; continue with checkpoint.resume=auto")
    assert last == f"run directory: {directory}"
    step = int(stopped.split("after step ")[1].split(";")[0])
    assert 2 <= step < STEPS
    # Another process after the same directory is refused and changes nothing there.
    line = (
        f"hcmegatron: error: run.dir = {directory} is in use by a job that is still running; choose another\n"
    )
    assert (rival, said) == (2, line)
    assert again == 0 and f"after step {step}, bit for bit" in (directory / "train.log").read_text()
    assert tensors == whole[1]
    assert losses(directory) == losses(whole[0])


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"]) for line in lines]


@pytest.mark.ranks
def test_tensorboard_reads_what_metrics_hold(whole):
    """Every figure of metrics.jsonl under its kind and name, at its step, to the 32 bits that TensorBoard keeps."""
    directory, _ = whole
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    expected = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step, kind = entry.pop("step"), entry.pop("kind")
        for name, value in entry.items():
            expected.setdefault(f"{kind}/{name}", []).append((step, pytest.approx(value, rel=1e-6)))
    assert {"train/loss", "train/mfu", "train/tokens_per_s", "validation/loss"} <= expected.keys()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == expected
    assert [step for step, _ in found["train/loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in found["validation/loss"]] == [30, STEPS]
