"""Observations as they are written and read."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hcmegatron.diagnostics import files
from hcmegatron.diagnostics.files import Observation, Warned
from hcmegatron.training.diagnostics_files import DiagnosticsFiles
from hcmegatron.training.tensorboard import PIXELS, TensorBoard, heat_map

WARNED = Warned("composite_gain", "layer 1 mlp", 300.0, 100.0, "layer 1 mlp: too much")


def observation(step, **arrays):
    return Observation(step, 512, 0.25, {"loss": 3.5, "composite_gain_forward_max": 1.5}, [WARNED], arrays)


def test_lines_are_read_as_they_were_written(tmp_path):
    assert files.read_observations(tmp_path) == []
    kept = [observation(200), observation(100)]
    (tmp_path / files.LINES).write_text("".join(each.line for each in kept))
    assert files.read_observations(tmp_path) == kept[::-1]


def test_a_line_by_hand():
    assert observation(100).line == (
        '{"step": 100, "tokens": 512, "seconds": 0.25, "scalars": {"loss": 3.5, "composite_gain_forward_max": 1.5}, '
        '"warnings": [{"code": "composite_gain", "layer": "layer 1 mlp", "value": 300.0, "bound": 100.0, '
        '"message": "layer 1 mlp: too much"}]}\n'
    )


def test_what_is_not_a_number_is_null(tmp_path):
    warned = Warned("composite_gain", "layer 1 mlp", math.inf, 100.0, "too much")
    line = Observation(1, 0, 0.0, {"loss": math.nan}, [warned]).line
    assert '"loss": null' in line and '"value": null' in line
    (tmp_path / files.LINES).write_text(line)
    (found,) = files.read_observations(tmp_path)
    assert math.isnan(found.scalars["loss"]) and math.isnan(found.warnings[0].value)


@pytest.mark.parametrize("torn", ["", '{"step": 3', "[1]", '{"step": 3, "scalars": {}}', "null", "\x00"])
def test_what_is_no_observation_is_passed_over(torn, tmp_path):
    (tmp_path / files.LINES).write_text(observation(1).line + torn)
    assert files.read_observations(tmp_path) == [observation(1)]


def test_arrays(tmp_path):
    arrays = {
        "pre": np.arange(6.0).reshape(2, 3),
        "sublayers": np.array(["layer 1 attention", "layer 1 mlp"]),
    }
    files.write_arrays(tmp_path, observation(100, **arrays))
    assert (tmp_path / "diagnostics/step-00000100.npz").exists()
    found = files.read_arrays(tmp_path, 100)
    assert found.keys() == arrays.keys() and all(
        (found[name] == value).all() for name, value in arrays.items()
    )
    assert files.read_arrays(tmp_path, 200) == {}


def test_arrays_that_cannot_be_written_leave_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_arrays(tmp_path, observation(100))
    assert list((tmp_path / "diagnostics").iterdir()) == []


def test_arrays_of_later_steps_are_dropped(tmp_path):
    for step in (100, 200, 300):
        files.write_arrays(tmp_path, observation(step, pre=np.ones(1)))
    (tmp_path / "diagnostics/step-mine.npz").touch()
    files.drop_later_arrays(tmp_path, 100)
    assert sorted(path.name for path in (tmp_path / "diagnostics").iterdir()) == [
        "step-00000100.npz",
        "step-mine.npz",
    ]
    files.drop_later_arrays(tmp_path / "elsewhere", 0)


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_arrays_that_are_damaged_are_named(content, tmp_path):
    files.write_arrays(tmp_path, observation(100, pre=np.ones((64, 64))))
    path = tmp_path / "diagnostics/step-00000100.npz"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match=r"step-00000100\.npz is damaged: "):
        files.read_arrays(tmp_path, 100)


def test_what_is_odd_in_a_line_costs_no_more_than_itself(tmp_path):
    line = (
        '{"step": 3, "tokens": 1e400, "seconds": "x", "scalars": {"a": 1, "b": "y", "c": true, "d": null}, '
    )
    huge = "1" + 400 * "0"
    warned = f'{{"code": "x", "layer": "y", "value": {huge}, "bound": 1, "message": "z"}}'
    (tmp_path / files.LINES).write_text(f'{line}"warnings": [3, {{}}, {warned}]}}\n')
    (found,), unreadable = files.read_lines(tmp_path)
    assert (found.step, found.tokens, unreadable) == (3, 0, 0) and math.isnan(found.seconds)
    assert found.scalars.keys() == {"a", "d"} and found.scalars["a"] == 1.0
    assert [(each.code, math.isnan(each.value), each.bound) for each in found.warnings] == [("x", True, 1.0)]


@pytest.mark.parametrize("step", ["1e400", "1.5", "true", '"3"', "-1", "null"])
def test_a_line_without_a_step_is_counted(step, tmp_path):
    text = f'{{"step": {step}, "tokens": 1, "seconds": 0, "scalars": {{}}, "warnings": []}}\n'
    (tmp_path / files.LINES).write_text(f"{text}\n7\n{observation(1).line}{{")
    assert files.read_lines(tmp_path) == ([observation(1)], 2)


def test_two_lines_of_a_step_are_one_observation(tmp_path):
    spike = Warned("loss_spike", "layer 1 mlp", 50.0, 6.0, "layer 1 mlp: grew first")
    first = Observation(3, 0, 0.5, {"training_loss": 50.0}, [spike])
    (tmp_path / files.LINES).write_text(first.line + observation(3).line + observation(2).line)
    second, third = files.read_observations(tmp_path)
    scalars = {"training_loss": 50.0, **observation(3).scalars}
    assert second == observation(2) and third == Observation(3, 512, 0.75, scalars, [spike, WARNED])


def test_arrays_are_there_before_their_line(tmp_path):
    """Who reads the line, and then the arrays, finds them."""
    position, log = SimpleNamespace(step=0), SimpleNamespace(report=None)
    writing = DiagnosticsFiles(SimpleNamespace(directory=tmp_path, log=log, position=position))
    found = []
    writing._lines = SimpleNamespace(
        write=lambda line: found.append((json.loads(line)["step"], set(files.read_arrays(tmp_path, 5))))
    )
    writing.on_observation(observation(5, pre=np.ones(1)))
    assert found == [(5, {"pre"})]


def test_a_heat_map_has_matrices_beside_each_other():
    picture = heat_map(np.array([[[0.0, 1.0], [2.0, 4.0]], [[4.0, np.inf], [np.nan, -np.inf]]]))
    assert picture.shape == (2 * PIXELS, 4 * PIXELS + 2) and picture.dtype == np.uint8
    corners = picture[:: 2 * PIXELS - 1, [0, 2 * PIXELS - 1, 2 * PIXELS, 2 * PIXELS + 2, -1]]
    assert corners.tolist() == [[0, 64, 128, 255, 255], [128, 255, 128, 0, 0]]
    assert heat_map(np.full((1, 2, 2), np.nan)).max() == 0
    assert heat_map(np.ones((3, 3))).max() == 0


def test_tensorboard_is_given_no_histogram_of_what_is_not_finite(tmp_path):
    reports = []
    log = SimpleNamespace(report=reports.append)
    watching = TensorBoard(SimpleNamespace(directory=tmp_path, log=log, position=SimpleNamespace(step=0)))
    watching.on_observation(
        observation(1, gain_forward=np.array([1.0, np.inf]), residual_map=np.full((1, 2, 2), np.nan))
    )
    watching.on_end(None)
    assert reports == []
