"""Measured costs: a step put together from them, their file, and whom it does not fit."""

import json
import os
from dataclasses import replace
from unittest import mock

import pytest
import yaml

from hcmegatron.cli import main
from hcmegatron.config import ConfigError
from hcmegatron.config.types import flatten
from hcmegatron.connections import accounting
from hcmegatron.planner import measured
from hcmegatron.planner.hops import hop_costs
from hcmegatron.planner.html import to_html
from hcmegatron.planner.layout import schedule
from hcmegatron.planner.plan import make_plan
from schedules.receives import most_ahead, receive_leads
from schedules.simulate import simulate
from tests.planner.measured_cases import FILE, HERE, config, costs, written


@pytest.fixture(autouse=True)
def environment():
    """The command sets variables for its own process, which here is the tests'."""
    with mock.patch.dict(os.environ):
        yield


def test_a_step_by_hand():
    """Messages take 0.5 s, and 0.25 s from the rank that sends and from the one that receives. The first rank: F0 2.25,
    F1 4.5, B0 when rank 1 has run F0 (2.75 to 6) and I0 (8.25), which arrives at 8.75 while it runs W0 (9.25), and so
    on; its B3 waits for 28.25 and ends at 30.5. With backwards whole it is a W later."""
    plan = make_plan(config(), HERE, 2, measured=costs())
    assert plan.time.pipeline == pytest.approx(30.5)
    assert plan.seconds == pytest.approx(30.5 + 2.5)
    whole = make_plan(config(parallel__split_backward=False), HERE, 2, measured=costs())
    assert whole.time.pipeline == pytest.approx(31.5)
    first, last = plan.time.parts
    assert first["forward"] == pytest.approx(4 * 2.25) and first["backward"] == pytest.approx(4 * 2.25)
    assert last["forward"] == pytest.approx(4 * 3.25) and last["backward"] == pytest.approx(4 * 3.25)
    assert first["optimizer"] == 2.0 and first.total() == pytest.approx(33.0) == pytest.approx(last.total())


def test_another_schedule_of_as_many_stages():
    """Backward split: I and W, of which only I has a message."""
    split = config(parallel__schedule="zb_h1")
    found = costs()
    found.require(split, 2, "costs.yaml")
    own = found.costs(split, schedule(split, 4)).stages[1]
    assert (own.F, own.I, own.W, own.B) == (3.25, 2.25, 1.0, 3.25)


def test_the_file_gives_back_what_was_measured(tmp_path):
    found = costs(config(model__init_std=0.0123456789))
    assert measured.read(written(tmp_path / "costs.yaml", found)) == found


@pytest.mark.parametrize(
    ("changes", "ranks", "words"),
    [
        ({"model__layers": 8}, 2, "model.layers = 4 when it was measured, 8 here"),
        ({"connection__kind": "residual"}, 2, "connection.kind = mhc when it was measured, residual here"),
        ({"training__micro_batch": 1}, 2, "training.micro_batch = 2 when it was measured, 1 here"),
        ({"parallel__schedule": "dualpipev"}, 2, "model stages = 2 when it was measured, 4 here"),
        ({"parallel__schedule": "dualpipe"}, 2, "copies of a stage = 1 when it was measured, 2 here"),
        ({"training__global_batch": 16}, 4, "it was measured on 2 ranks, and these are 4"),
        ({"parallel__schedule": "zb_h1"}, 2, "without I and W, which parallel.schedule = zb_h1 has"),
        ({}, 2, "without I and W, which parallel.schedule = 1f1b has unless parallel.split_backward = false"),
    ],
)
def test_costs_of_another_shape_are_refused_in_one_line(changes, ranks, words):
    found = costs()
    if "I and W" in words:
        whole = {key: value for key, value in found.settings.items() if key not in ("input", "weight")}
        found = replace(found, settings=whole)
    with pytest.raises(ConfigError) as refused:
        found.require(config(**changes), ranks, "costs.yaml")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert "measure again, with hcmegatron plan --measure" in str(refused.value)


def test_what_no_time_depends_on_may_be_another():
    costs().require(config(optimizer__lr=1e-4, training__steps=7, training__global_batch=16), 2, "costs.yaml")


def test_every_setting_is_one_that_times_depend_on_or_not():
    """Of the network everything counts; a mistyped key would count nowhere."""
    keys = flatten(config()).keys()
    assert set(measured._OF_TIMES.split()) <= keys
    assert {key.partition(".")[0] for key in keys} >= set(measured.SECTIONS)
    assert f"connection.{next(iter(accounting.kind_of(config().connection).fields))}" in measured.shape(
        config()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.pop("measured"), "was not measured"),
        (lambda file: file["measured"].update(format=2), "is of format 2, this version reads 1"),
        (lambda file: file["measured"].pop("after"), "measured.after is missing"),
        (lambda file: file["measured"].update(shap=1), "measured.shap is unknown; did you mean shape?"),
        (lambda file: file["measured"]["machine"].update(x=1), "measured.machine: "),
        (lambda file: file.update(forwards=1), "unknown key 'forwards'; did you mean 'forward'?"),
        (lambda file: file.pop("forward"), "forward is missing"),
        (lambda file: file["measured"].update(after=None), "measured.after = None: not a mapping"),
        (lambda file: file["measured"].update(shape=None), "measured.shape = None: not a mapping"),
        (
            lambda file: file["measured"]["after"].update(optimizer="x"),
            "measured.after.optimizer = x: 0 or more",
        ),
        (lambda file: file["measured"]["machine"].update(memory_gib="x"), "measured.machine: "),
        (lambda file: file["measured"]["machine"].update(memory_gib=-1), "measured.machine: memory_gib = -1"),
    ],
)
def test_files_that_are_none(change, words, tmp_path):
    file = yaml.safe_load(costs().as_yaml())
    change(file)
    (tmp_path / "costs.yaml").write_text(yaml.safe_dump(file))
    with pytest.raises(ConfigError) as refused:
        measured.read(tmp_path / "costs.yaml")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_plan_and_schedule_take_the_file(tmp_path, capsys):
    path = written(tmp_path / "costs.yaml", costs())
    one = ["--parallel.schedule=1f1b", "--parallel.split_backward=false", f"--json={tmp_path}/plan.json"]
    assert main(["plan", FILE, "--costs", str(path), *one]) == 0
    out = capsys.readouterr().out
    assert "step 34.000 s (30.60 to 37.40)" in out and "times measured on here, 2 ranks at once" in out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["step_s"] == pytest.approx(34.0) and found["measured"]["ranks"] == 2
    sizes = ["--ranks", "2", "--microbatches", "4", "--costs", str(path), "--json", f"{tmp_path}/one.json"]
    assert main(["schedule", "1f1b", *sizes]) == 0
    assert json.loads((tmp_path / "one.json").read_text())["makespan"] == pytest.approx(31.5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--search"], "--search beside parallel.costs"),
        (["--gpu=h100"], "--gpu beside parallel.costs"),
        (["--imbalance=2"], "--imbalance beside parallel.costs"),
        (["--measure"], "--measure beside parallel.costs"),
        (["--gpus=4"], "measured on 2 ranks, and these are 4"),
        (["--out=x.yaml"], "--out without --measure"),
    ],
)
def test_what_measured_costs_leave_nothing_to_say_about(words, line, tmp_path, capsys):
    path = written(tmp_path / "costs.yaml", costs())
    assert main(["plan", FILE, f"--parallel.costs={path}", "--parallel.schedule=1f1b", *words]) == 2
    captured = capsys.readouterr()
    assert line in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_run_refuses_costs_of_another_shape_before_it_starts(tmp_path, capsys):
    path = written(tmp_path / "costs.yaml", costs())
    assert main(["train", FILE, f"--parallel.costs={path}", f"--run.dir={tmp_path}/run"]) == 2
    assert f"parallel.costs = {path} does not fit: model stages = 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_receives_are_posted_by_what_was_measured(tmp_path):
    """The quickstart's stages are so quick on an H100 that a hop takes long; on a CPU it takes next to nothing."""
    slow = config(parallel__split_backward=False)
    whole = schedule(slow, 8)

    def leads():
        return most_ahead(receive_leads(simulate(whole, hop_costs(slow, whole))))

    assert leads() == {(0, 1): 2, (1, 0): 2}
    slow.parallel.costs = str(written(tmp_path / "costs.yaml", costs(latency=0.0625)))
    assert leads() == {(0, 1): 1, (1, 0): 1}
    assert hop_costs(slow, whole).link.latency == 0.0625


def test_a_schedule_with_i_and_w_asks_for_their_times(tmp_path, capsys):
    (tmp_path / "costs.yaml").write_text("backward: 2\nforward: 1\n")
    sizes = ["--ranks", "2", "--microbatches", "4", "--costs", str(tmp_path / "costs.yaml")]
    assert main(["schedule", "1f1b", *sizes]) == 0
    assert main(["schedule", "zb_h1", *sizes]) == 2
    assert "backward without input and weight" in capsys.readouterr().err


@pytest.mark.parametrize("forward", [[1.0], [-1.0, 2.0]])
def test_times_that_no_schedule_takes(forward):
    with pytest.raises(ConfigError, match=r"measured costs: .*measure again"):
        make_plan(config(), HERE, 2, measured=costs(forward=forward))


def test_the_page_of_measured_costs_has_no_changes_to_propose():
    page = to_html(make_plan(config(), HERE, 2, measured=costs()), [], [], None, "quickstart.yaml")
    assert "<h2>Changes</h2>" not in page
    assert "Times measured on here" in page
