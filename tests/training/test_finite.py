"""Steps that are not finite: what is said of each, and when the run gives up."""

from types import SimpleNamespace

import pytest

from hcmegatron.config import Config
from hcmegatron.training.observer import Step
from hcmegatron.training.step import StepResult
from hcmegatron.training.stopping import Diverged, Finite

NAN = float("nan")


def watch(limit, *updated):
    """What is said of steps of ten sequences each, of which these were taken."""
    said = []
    config = Config()
    config.training.max_bad_steps = limit
    finite = Finite(SimpleNamespace(config=config, log=SimpleNamespace(say=said.append)))
    for number, was in enumerate(updated, 1):
        samples = range(10 * number - 10, 10 * number)
        finite.on_step(Step(number, StepResult(1.5 if was else NAN, 2.5, was, samples, 0.0), 1e-3, 1.0))
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
