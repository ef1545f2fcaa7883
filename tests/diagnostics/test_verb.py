"""`hcmegatron diagnostics`: one observation of a run, printed."""

import json

import numpy as np
import pytest

from hcmegatron.cli import main
from hcmegatron.diagnostics.files import LINES, Observation, Warned, arrays_file, write_arrays

NAMES = ["layer 1 attention", "layer 1 mlp"]


@pytest.fixture
def run(tmp_path):
    """Two observations; gain_forward of the first sub-layer is step / 100, that of the second infinite."""
    warned = Warned("composite_gain", NAMES[1], 120.0, 100.0, "layer 1 mlp: composite gain 120")
    for step, warnings in ((100, []), (200, [warned])):
        arrays = {"sublayers": np.array(NAMES), "gain_forward": np.array([step / 100, np.inf])}
        arrays["residual_map"] = np.ones((2, 4, 4))
        observation = Observation(step, 512, 0.25, {"loss": step + 0.5}, warnings, arrays)
        with (tmp_path / LINES).open("a") as file:
            file.write(observation.line)
        write_arrays(tmp_path, observation)
    return tmp_path


def test_the_newest_is_shown_by_sub_layer(run, capsys):
    assert main(["diagnostics", str(run)]) == 0
    head, _, loss, _, columns, first, second, warned = capsys.readouterr().out.splitlines()
    assert (
        head == f"{run}, after step 200: 512 tokens observed in 0.25 s; 2 observations: after steps 100, 200"
    )
    assert (loss, warned) == ("loss  200.5", "warning: layer 1 mlp: composite gain 120")
    assert (columns.split(), first.split()[-1], second.split()[-1]) == (["sub-layer", "gain"], "2", "inf")


def test_that_of_a_step_as_json(run, capsys):
    assert main(["diagnostics", str(run), "--step=100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["scalars"]) == (100, {"loss": 100.5})
    assert found["arrays"]["gain_forward"] == [1.0, None]
    assert found["arrays"]["residual_map"][1] == [[1.0] * 4] * 4


def test_without_its_arrays_the_figures_of_all_remain(run, capsys):
    arrays_file(run, 200).unlink()
    assert main(["diagnostics", str(run)]) == 0
    out = capsys.readouterr().out
    assert "loss  200.5" in out and f"no figures by sub-layer: there is no {arrays_file(run, 200)}" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["{run}", "--step=150"],
            "--step 150: {run} has no observation after it; it has after steps 100, 200",
        ),
        (["{run}/none"], "{run}/none: there is no such directory; give a run with diagnostics.every above 0"),
        (["{run}/diagnostics"], "{run}/diagnostics: no observation in diagnostics.jsonl; give a run with"),
    ],
)
def test_what_is_not_there(words, said, run, capsys):
    assert main(["diagnostics", *(word.format(run=run) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hcmegatron: error: " + said.format(run=run)) and error.count("\n") == 1


def test_damaged_arrays_are_named(run, capsys):
    arrays_file(run, 200).write_bytes(b"PK")
    assert main(["diagnostics", str(run)]) == 2
    assert f"{arrays_file(run, 200)} is damaged" in capsys.readouterr().err
