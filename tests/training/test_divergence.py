"""health.diverged_after: when a run that stays no better than a guess is ended, also one that was cut off."""

import json
import math
from types import SimpleNamespace

import pytest

from hcmegatron.config import Config
from hcmegatron.platform.exit_status import DIVERGED
from hcmegatron.training import divergence
from hcmegatron.training.bad_steps import Diverged
from hcmegatron.training.divergence import Divergence
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Rewind, Step
from hcmegatron.training.step import StepResult
from tests.small_configs import put

GUESS = math.log(100)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(divergence, "on_first_rank", lambda work: work())
    config = put(Config(), health={"diverged_after": 3}, optimizer={"warmup_steps": 2})
    tokenizer = SimpleNamespace(vocab_size=100)
    return SimpleNamespace(
        config=config,
        text=SimpleNamespace(tokenizer=tokenizer),
        directory=tmp_path,
        position=Progress(0, 0),
    )


def end_of(observer, losses, first=1):
    """The step at which it ends a run with these losses; None where it does not."""
    for number, loss in enumerate(losses, first):
        try:
            observer.on_step(Step(number, StepResult(loss, 1.0, True, range(0), 0.0), 1e-3, 1.0))
        except Diverged as error:
            assert error.status == DIVERGED and f"after step {number} the loss has been 4.605 or more" in str(
                error
            )
            return number
    return None


def test_after_so_many_steps_in_a_row_that_are_no_better_than_a_guess(run):
    high, low = GUESS, GUESS - 1e-6
    assert end_of(Divergence(run), [high] * 9) == 5  # the warmup does not count
    assert end_of(Divergence(run), [low, low, high, high, low, high, math.nan, high]) == 8
    assert end_of(Divergence(run), [low, low, high, high, low] * 3) is None


def test_what_is_repeated_counts_anew_and_what_was_before_stays(run):
    """As for a run that is cut off after the repetition has begun."""
    observer = Divergence(run)
    assert end_of(observer, [9.0, 9.0, 9.0, 9.0]) is None
    lines = [json.dumps({"step": n, "kind": "train", "loss": 9.0}) for n in (1, 2, 3)]
    (run.directory / "metrics.jsonl").write_text("\n".join(lines))
    observer.on_rewind(Rewind(None, Progress(3, 6), range(0)))
    assert end_of(observer, [9.0, 9.0, 9.0], first=4) == 5
    observer.on_rewind(Rewind(None, Progress(2, 4), range(0)))
    assert end_of(observer, [9.0, 9.0, 9.0], first=3) == 5


def test_a_run_that_goes_on_ends_where_it_would_have_ended(run):
    losses = [9.0, 9.0, 1.0, 9.0, None, 9.0, 9.0]
    lines = [json.dumps({"step": n, "kind": "train", "loss": loss}) for n, loss in enumerate(losses, 1)]
    (run.directory / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 8, "ki']))
    run.position = Progress(5, 10)
    assert end_of(Divergence(run), [9.0, 9.0], first=6) == 6
    run.position = Progress(3, 6)
    assert end_of(Divergence(run), [9.0] * 4, first=4) == 6
    run.position = Progress(2, 4)
    assert end_of(Divergence(run), [9.0] * 4, first=3) == 5
