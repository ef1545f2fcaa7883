"""Observations of whole runs: they change nothing, and are in every place that they should be."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hcmegatron.diagnostics.files import read_arrays, read_observations
from tests.diagnostics import run_workers
from tests.ranks import run_ranks
from tests.small_configs import put, tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
STEPWISE = (
    "tokens_per_s",
    "tflops_per_rank",
    "mfu",
    "memory_gib",
    "data_wait",
    "seconds",
)  # differ run by run


def config(text, directory, **diagnostics):
    """MoE with router biases, dropout, checkpoints every two of four steps; over two pipeline ranks."""
    made = tiny(text, directory, parallel={"schedule": "1f1b"})
    return put(made, diagnostics={"every": 0, "tokens": 40} | diagnostics)


def metrics(directory, kind):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in STEPWISE}
        for line in lines
        if line["kind"] == kind
    ]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """Without and with diagnostics: directories, and by step the hashes of weights and optimizer state of all ranks."""
    folder = tmp_path_factory.mktemp("runs")
    without = config(text, folder / "without")
    observed = config(text, folder / "with", every=1, ablation_every=2)
    observed.run.tensorboard = True
    return {c.run.dir: run_ranks(2, workers.run, c, **RUN) for c in (without, observed)}, folder


@pytest.mark.ranks
def test_losses_weights_and_checkpoints_have_the_same_bits_with_and_without(runs):
    states, folder = runs
    without, observed = states.values()
    assert without == observed and all(len(rank) == 2 for rank in observed)
    for kind in ("train", "validation"):
        assert metrics(folder / "without", kind) == metrics(folder / "with", kind) != []
    assert not metrics(folder / "without", "diagnostics")
    assert not (folder / "without/diagnostics.jsonl").exists()


@pytest.mark.ranks
def test_where_an_observation_is(runs):
    directory = runs[1] / "with"
    observations = read_observations(directory)
    assert [observation.step for observation in observations] == [1, 2, 3, 4]
    assert {observation.tokens for observation in observations} == {
        32
    }  # two sequences of 32, every second token
    lines = metrics(directory, "diagnostics")
    for observation, line in zip(observations, lines, strict=True):
        assert {name: line[name] for name in observation.scalars} == observation.scalars
    last = observations[-1].scalars
    assert last["single_gain_forward_max"] == pytest.approx(1.0, abs=1e-6) and last["steps"] > 0
    assert last["composite_gain_backward_max"] < 1.5 and "ablation_sublayer_max" in last
    assert "ablation_sublayer_max" not in observations[2].scalars
    arrays = read_arrays(directory, 4)
    assert arrays["sublayers"].tolist() == [
        "layer 1 attention",
        "layer 1 mlp",
        "layer 2 attention",
        "layer 2 mlp",
    ]
    assert arrays["moe_layers"].tolist() == [2] and arrays["router_bias"].shape == (1, 4)
    assert np.abs(arrays["router_bias"]).max() > 0 and arrays["expert_load"].sum() == pytest.approx(1.0)
    assert arrays["ablation_stream"].shape == (2,)
    log = (directory / "train.log").read_text()
    assert log.count("diagnostics: an observation of 32 tokens took ") == 1


@pytest.mark.ranks
def test_tensorboard_has_figures_pictures_and_histograms(runs):
    events = EventAccumulator(str(runs[1] / "with/tensorboard"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("diagnostics/composite_gain_forward_max")] == [1, 2, 3, 4]
    assert {"diagnostics/residual_map", "diagnostics/connection_matrix"} <= set(tags["images"])
    assert {"diagnostics/pre", "diagnostics/gain_backward"} <= set(tags["histograms"])
    (image, *_) = events.Images("diagnostics/residual_map")
    assert (image.height, image.width) == (16, 4 * 16 + 3 * 2)  # four maps of 2 x 2, eight pixels an entry


@pytest.mark.ranks
def test_a_run_that_goes_on_observes_its_steps_anew(text, tmp_path, runs):
    first = config(text, tmp_path / "run", every=1)
    first.training.steps = 3
    run_ranks(2, workers.run, first, **RUN)
    (tmp_path / "run/diagnostics.jsonl").open("a").write('{"step": 9, "tok')  # torn
    again = config(text, tmp_path / "run", every=1)
    put(again, training={"steps": 3}, checkpoint={"resume": "auto"})
    (tmp_path / "run/checkpoints/step-00000003").rename(tmp_path / "aside")
    run_ranks(2, workers.run, again, **RUN)
    observations = read_observations(tmp_path / "run")
    assert [observation.step for observation in observations] == [1, 2, 3]
    assert len((tmp_path / "run/diagnostics.jsonl").read_text().splitlines()) == 3


def dhc(text, directory, **diagnostics):
    made = tiny(text, directory, connection={"kind": "dhc"}, parallel={"pipeline": 1}, moe={"experts": 0})
    made.model.attention, made.model.hidden_dropout, made.checkpoint.save_every = "gqa", 0.0, 0
    return put(made, diagnostics={"every": 1, "tokens": 64} | diagnostics)


@pytest.mark.ranks
def test_a_planted_gain_is_found_and_said_once(text, tmp_path):
    run_ranks(1, run_workers.planted, dhc(text, tmp_path / "run"), **RUN)
    first, *_ = observations = read_observations(tmp_path / "run")
    arrays = read_arrays(tmp_path / "run", 1)
    assert arrays["composite_forward"][:3] == pytest.approx(3000.0, rel=1e-2)
    assert arrays["composite_forward"][3] == pytest.approx(1.0, rel=0.1)
    assert arrays["gain_forward"][2] == pytest.approx(3000.0, rel=1e-2)
    of_gain = [warned for warned in first.warnings if warned.code == "composite_gain"]
    assert [warned.layer for warned in of_gain] == ["layer 1 attention", "layer 1 mlp", "layer 2 attention"]
    assert all(len(observation.warnings) >= 3 for observation in observations)
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("can grow 3") == 1 and "use connection.kind=mhc (so do layer " in log


@pytest.mark.ranks
def test_a_loss_that_spikes_names_the_sub_layer_whose_gradient_grew_first(text, tmp_path):
    """With clipping, with the spike's step skipped by health, and without it."""
    for limit in (0.0, 20.0):
        directory = tmp_path / f"run-{limit}"
        made = dhc(text, directory, every=2)
        put(
            made,
            training={"steps": 6},
            health={"loss_spike": limit, "spike_window": 4},
            optimizer={"clip": 0.1},
        )
        run_ranks(1, run_workers.spiking, made, [5, 6], **RUN)
        found = read_observations(directory)
        assert [each.step for each in found] == [
            2,
            4,
            5,
            6,
        ]  # the sixth is an observation, and no second warning
        spike = found[2]
        assert not [warned for warned in found[3].warnings if warned.code == "loss_spike"]
        (warned,) = spike.warnings
        assert (warned.code, warned.layer) == ("loss_spike", "layer 1 mlp") and 30 < warned.value < 300
        assert spike.scalars == {"training_loss": 50.0} and not read_arrays(directory, 5)
        log = (directory / "train.log").read_text()
        assert "warning: step 5: layer 1 mlp: was the first whose gradient grew, to " in log


@pytest.mark.ranks
def test_arrays_that_cannot_be_written_end_no_run(text, tmp_path):
    run_ranks(1, run_workers.full_disk, dhc(text, tmp_path / "run"), **RUN)
    assert [observation.step for observation in read_observations(tmp_path / "run")] == [1, 2, 3, 4]
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("takes no arrays (No space left on device): training goes on") == 1


@pytest.mark.ranks
def test_without_held_out_text_nothing_is_observed(text, tmp_path):
    made = dhc(text, tmp_path / "run")
    made.data.holdout = 0.0
    run_ranks(1, workers.run, made, **RUN)
    assert read_observations(tmp_path / "run") == []
