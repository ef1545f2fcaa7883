"""Steps that are not finite or spike: what is said of each, when the run gives up, goes back, and what is replayed."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hcmegatron.config import Config, ConfigError
from hcmegatron.training import kept_steps, replay
from hcmegatron.training.bad_steps import BadSteps, Diverged
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Step
from hcmegatron.training.step import NOT_FINITE, StepResult
from tests.data.small_tokenizers import byte_level
from tests.ranks import run_ranks
from tests.small_configs import put, tiny
from tests.training import health_workers

NAN = float("nan")


def watching(said, limit=5, **health):
    """What watches a run that keeps nothing."""
    config = put(Config(), health=health, training={"max_bad_steps": limit})
    log = SimpleNamespace(say=lambda *lines: said.extend(lines))
    checkpoints = SimpleNamespace(finish=list, saved=None, told=None)
    return BadSteps(
        SimpleNamespace(config=config, log=log, ranks=SimpleNamespace(rank=1), checkpoints=checkpoints)
    )


def step_of(number, good, bad=NOT_FINITE):
    """Ten sequences."""
    samples = range(10 * number - 10, 10 * number)
    result = StepResult(1.5 if good else NAN, 2.5, good, samples, 0.0, "" if good else bad)
    return Step(number, result, 1e-3, 1.0)


def watch(limit, *updated):
    """What is said of steps of which these were taken."""
    said = []
    bad_steps = watching(said, limit)
    for number, good in enumerate(updated, 1):
        bad_steps.on_step(step_of(number, good))
    return said


def test_what_is_skipped_is_said_and_counted():
    assert watch(2, True, False, True, False) == [
        "skipped: loss nan, gradient norm 2.5 at step 2, sequences 10 to 19 of the data order; 1 skipped so far",
        "skipped: loss nan, gradient norm 2.5 at step 4, sequences 30 to 39 of the data order; 2 skipped so far",
    ]


def test_several_in_a_row_end_the_run():
    watch(3, False, False, True, False, False)
    line = (
        "^3 non-finite steps in a row; the last was step 4, sequences 30 to 39 of the data order; "
        "weights are as before them$"
    )
    with pytest.raises(Diverged, match=line):
        watch(3, True, False, False, False)
    with pytest.raises(Diverged, match=r"^1 non-finite steps in a row; the last was step 1,"):
        watch(1, False)


def test_a_bad_step_can_be_the_end():
    line = (
        r"^loss nan, gradient norm 2.5 \(loss 9 deviations above\) at step 3, sequences 20 to 29 of the data order; "
        "weights are as before it, and health.on_bad_step is stop$"
    )
    with pytest.raises(Diverged, match=line):
        watching([], on_bad_step="stop").on_step(step_of(3, False, "loss 9 deviations above"))


def test_without_a_checkpoint_there_is_no_way_back(monkeypatch):
    said = []
    bad_steps = watching(said, on_bad_step="rewind")
    monkeypatch.setattr(bad_steps, "_checkpoint", lambda: None)
    bad_steps.on_step(step_of(1, False))
    assert said == [
        "skipped: loss nan, gradient norm 2.5 at step 1, sequences 0 to 9 of the data order; there is no checkpoint to "
        "go back to yet; 1 skipped so far"
    ]


def test_what_a_rewind_repeats_is_no_recovery(monkeypatch):
    """Bad at 3, back to 1, good at 2 once more and from 3 on. Bad at 5, good at 2 once more, and bad at 5: two in a
    row."""
    bad_steps = watching([], 2, on_bad_step="rewind")
    start = SimpleNamespace(path="x", position=Progress(1, 10), aside=())
    monkeypatch.setattr(bad_steps, "_checkpoint", lambda: start)
    monkeypatch.setattr(bad_steps, "_go_back", lambda start, step: step.result.samples)
    for number, good in ((2, True), (3, False), (2, True), (3, True), (4, True), (5, False), (2, True)):
        bad_steps.on_step(step_of(number, good))
    with pytest.raises(Diverged, match=r"^2 non-finite steps in a row; the last was step 5,"):
        bad_steps.on_step(step_of(5, False))


@pytest.mark.parametrize("broken", ["nothing", "json", "settings", "npz", "half"])
def test_a_kept_step_that_is_none_is_refused(broken, tmp_path):
    path = tmp_path / "step-00000003"
    arrays = path.with_suffix(".npz")
    keys = ("step", "bad", "loss", "grad_norm", "checkpoint", "after_step", "config")
    path.with_suffix(".json").write_text(json.dumps(dict.fromkeys(keys)))
    np.savez_compressed(arrays, samples=np.arange(2), tokens=np.zeros((2, 5), int))
    assert [array.shape for array in kept_steps.read(path)[1:]] == [(2,), (2, 5)]
    if broken == "nothing":
        arrays.unlink()
    elif broken in ("json", "settings"):
        path.with_suffix(".json").write_text('{"step": 3' + "}" * (broken == "settings"))
    else:
        whole = arrays.read_bytes()
        arrays.write_bytes(b"x" if broken == "npz" else whole[: len(whole) // 2])
    line = "there is no such file; name a kept step" if broken == "nothing" else "is no kept step, or not as"
    with pytest.raises(ConfigError, match=line):
        kept_steps.read(path.with_suffix(".json"))


RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
REWIND = {"health": {"on_bad_step": "rewind", "keep_bad_steps": 0}, "training": {"steps": 8}}


@pytest.mark.ranks
def test_a_rewind_is_a_run_that_never_met_the_batch_and_so_is_what_goes_on_from_it(text, tmp_path):
    """Two stages, dropout, experts with biases. Step 6 is bad, and the run goes back to step 4; it is told to stop in
    step 5, whose checkpoint knows what lies ahead of it; and goes on."""
    never = tiny(text, tmp_path / "never", **REWIND)
    expected = run_ranks(2, health_workers.trained, never, "", ((10, 12),), **RUN)
    config = tiny(text, tmp_path / "run", **REWIND)
    stopped = run_ranks(2, health_workers.trained, config, "11:nan", (), True, **RUN)
    assert [rank["samples"] for rank in stopped] == [[*range(12), 8, 9]] * 2
    config.checkpoint.resume = "auto"
    finished = run_ranks(2, health_workers.trained, config, "11:nan", **RUN)
    assert [rank["samples"] for rank in finished] == [[12, 13, 14, 15, 16, 17]] * 2
    assert [rank["hashes"][8] for rank in finished] == [rank["hashes"][8] for rank in expected]

    log = (tmp_path / "run/train.log").read_text()
    folder = tmp_path / "run/checkpoints"
    assert (
        f"to {folder}/step-00000004 after step 4, and sequences 10 to 11 are left out from now on; 1 bad so far\n"
        in log
    )
    assert f"continuing from {folder}/step-00000005 after step 5, bit for bit\n" in log
    assert "left out of the data, as before: sequences 10 to 11\n" in log
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["kind"]) for line in lines]
    assert steps[4:6] == [(4, "rewind"), (5, "train")]
    assert [step for step, kind in steps if kind == "train"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert lines[4]["rewound_from"] == 6 and lines[4]["left_out"] == [10, 12]
    assert lines[4]["nonfinite"] == {"loss": "nan"}


@pytest.mark.ranks
def test_a_rewind_goes_past_a_damaged_checkpoint(text, tmp_path):
    """In the job that holds the run directory's lock, and without the tokenizer's file, which is gone."""
    config = tiny(text, tmp_path / "run", **REWIND)
    put(
        config, parallel={"pipeline": 1}, training={"steps": 6}, data={"tokenizer": str(byte_level(tmp_path))}
    )
    run_ranks(1, health_workers.damaged, config, "11:nan", **RUN)
    log = (tmp_path / "run/train.log").read_text()
    folder = tmp_path / "run/checkpoints"
    assert f"to {folder}/step-00000002 after step 2, and sequences 10 to 11 are left out" in log
    assert f"WARNING: checkpoint {folder}/step-00000004 " in log
    assert {path.name for path in folder.iterdir()} == {
        "step-00000004",  # of the steps that were repeated
        "step-00000004.damaged",
        "step-00000006",
    }


@pytest.mark.ranks
def test_a_step_that_spikes_is_skipped_kept_and_replayed_in_one_process(text, tmp_path):
    """With the weights of the step before: the micro-batches' mean is then the loss that the run had without spike."""
    health = {"loss_spike": 6.0, "spike_window": 4, "keep_bad_steps": 1}
    config = tiny(text, tmp_path / "run", training={"steps": 6}, health=health)
    run_ranks(2, health_workers.trained, config, "4:50,8:50", **RUN)
    log = (tmp_path / "run/train.log").read_text()
    assert re.search(
        r"skipped: loss 55\.\d+, gradient norm \S+ \(loss [\d.]+ deviations above the median 5\.\d+ of the last 3 good "
        r"steps\) at step 5, sequences 8 to 9 of the data order; 2 skipped so far\n",
        log,
    )
    (kept,) = (tmp_path / "run/anomalies").glob("*.json")
    assert kept.stem == "step-00000005"
    (printed,) = run_ranks(1, health_workers.replayed, kept, **RUN)
    lines = printed.splitlines()
    assert re.match(
        r"step 5: loss 55\.\d+, gradient norm \S+ \(loss .*\); sequences 8 to 9 .* on 2 ranks", lines[0]
    )
    folder = tmp_path / "run/checkpoints"
    assert lines[1] == (
        f"weights: {folder}/step-00000004, after step 4; the bad step's were those after step 4"
    )
    losses = [float(re.search(r": loss (\S+), gradient norm", line)[1]) for line in lines[2:]]
    spiked = json.loads(kept.read_text())["loss"]
    assert len(losses) == 2 and sum(losses) / 2 == pytest.approx(spiked - 50, abs=2e-5)


def test_a_module_whose_output_is_not_finite_is_named():
    class Halved(torch.nn.Module):
        def forward(self, x):
            return x / 0 if self.broken else x / 2

    whole = torch.nn.Sequential(Halved(), Halved(), Halved())
    for number, module in enumerate(whole):
        module.broken = number == 1
    with replay.first_not_finite(whole) as found:
        whole(torch.ones(2))
    assert found == [
        "1 (Halved), of finite inputs",
        "2 (Halved), of inputs that are not finite either",
    ]
