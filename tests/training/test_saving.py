"""When a run saves, and what it says then, without a model."""

from types import SimpleNamespace

import pytest

from hcmegatron.config import Config
from hcmegatron.training.manifest import NotSaved, Progress
from hcmegatron.training.observer import End, Step
from hcmegatron.training.saving import Saving
from hcmegatron.training.step import StepResult


class Checkpoints:
    """Notes what it is asked to save; at the steps `failing` it cannot, at those in `there` it had done so before.

    A save has arrived when it was asked for so many times, `late`; 0: when it is begun.
    """

    def __init__(self, failing=(), there=(), late=0):
        self.asked, self.failing, self.there, self.late = [], failing, there, late
        self.saved, self.failed, self.begun, self.patience = None, None, None, 0

    def save(self, at, keep_older=False):
        said = self.finish()
        self.asked.append((at, keep_older))
        self.begun, self.patience = at, self.late
        return [*said, f"saving {at.step}", "as usual", *([] if self.late else self.finish())]

    def arrived(self):
        self.patience -= 1
        return self.begun is not None and self.patience <= 0

    def finish(self):
        at, self.begun = self.begun, None
        if at is None:
            return []
        self.failed = "step is not saved" if at.step in self.failing else None
        if not self.failed and at.step not in self.there:
            self.saved = at
        return [f"saved {at.step}"] if self.late else []

    def rescue(self):
        return [f"rescued {self.begun.step}"] if self.begun else []


def saved(steps, every=0, skipped=(), end=None, of=None, keep_at=(), **checkpoints):
    """What a run of `of` steps, of which these are done, asked for and said, and of what others were told."""
    config = Config()
    config.training.steps, config.checkpoint.save_every = of or steps[-1], every
    config.checkpoint.keep_at = list(keep_at)
    said, told = [], []
    run = SimpleNamespace(
        config=config,
        checkpoints=Checkpoints(**checkpoints),
        log=SimpleNamespace(say=lambda *lines: said.extend(lines)),
        observers=SimpleNamespace(on_checkpoint=told.append),
    )
    saving = Saving(run)
    for number in steps:
        samples = range(10 * number - 10, 10 * number)
        run.position = Progress(number, 10 * number)
        saving.on_step(Step(number, StepResult(1.0, 1.0, number not in skipped, samples, 0.0), 1e-3, 1.0))
    if end:
        saving.on_end(end)
    return [(at.step, at.samples, older) for at, older in run.checkpoints.asked], said, told


def test_every_so_many_steps_and_at_the_end():
    asked, said, told = saved([1, 2, 3, 4, 5], every=2, end=End(5))
    assert asked == [(2, 20, False), (4, 40, False), (5, 50, False)]
    assert said == ["saving 2", "as usual", "saving 4", "as usual", "saving 5", "as usual"]
    assert told == [Progress(2, 20), Progress(4, 40), Progress(5, 50)]


def test_after_the_steps_that_are_asked_for():
    asked, _, _ = saved([1, 2, 3, 4, 5], every=4, keep_at=[2, 3])
    assert [at for at, *_ in asked] == [2, 3, 4, 5]
    assert saved([1, 2, 3], keep_at=[2], skipped=[2])[0] == [(2, 20, True), (3, 30, False)]


def test_what_was_there_before_is_not_told_of():
    assert saved([1, 2], every=1, there=[1])[2] == [Progress(2, 20)]
    assert saved([1], there=[1])[2] == []
    assert saved([1, 2], every=1, there=[2])[2] == [Progress(1, 10)]


def test_a_skipped_step_saves_nothing_but_at_the_end_where_it_is_done_all_the_same():
    asked, _, told = saved([1, 2, 3, 4], every=2, skipped=[2, 4])
    assert asked == [(4, 40, True)] and told == [Progress(4, 40)]
    assert saved([1, 2], skipped=[1, 2])[0] == []  # nothing but what the run began with


def test_a_signal_saves_what_it_cuts_off_and_says_how_to_go_on():
    asked, said, _ = saved([1, 2, 3], of=9, end=End(3, "SIGTERM"))
    assert asked == [(3, 30, False)]
    assert said[-1] == "stopped by SIGTERM after step 3; continue with checkpoint.resume=auto"
    asked, said, _ = saved([1, 2, 3], of=3, end=End(3, "SIGTERM"))  # it was the last anyway
    assert asked == [(3, 30, False)] and said[-1] == "as usual"
    asked, said, _ = saved([1, 2, 3], of=9, skipped=[3], end=End(3, "SIGTERM"))
    assert asked == [(2, 20, True)]


def test_one_that_is_written_meanwhile_is_told_of_when_it_has_arrived():
    asked, said, told = saved([1, 2, 3, 4, 5, 6, 7], every=3, of=9, late=2)
    assert [step for step, *_ in asked] == [3, 6] and told == [Progress(3, 30)]
    assert said == ["saving 3", "as usual", "saved 3", "saving 6", "as usual"]
    # the next one, and the end, wait for the one before
    _, said, told = saved([1, 2, 3], every=1, end=End(3), late=9)
    assert said == [
        "saving 1",
        "as usual",
        "saved 1",
        "saving 2",
        "as usual",
        "saved 2",
        "saving 3",
        "as usual",
        "saved 3",
    ]
    assert told == [Progress(1, 10), Progress(2, 20), Progress(3, 30)]
    asked, said, told = saved([1, 2], every=2, of=9, end=End(2, "SIGTERM"), late=9)
    assert (
        told == [Progress(2, 20)]
        and said[-2].startswith("saved 2")
        and said[-1].startswith("stopped by SIGTERM")
    )


def test_one_that_fails_meanwhile_is_tried_again_and_the_last_one_ends_the_run():
    assert saved([1, 2, 3], every=1, failing=[1], end=End(3), late=1)[2] == [Progress(2, 20), Progress(3, 30)]
    with pytest.raises(NotSaved, match=r"^step is not saved; make room"):
        saved([1, 2], failing=[2], end=End(2), late=9)


def test_after_an_error_what_is_being_written_is_let_come_to_its_end():
    _, said, told = saved([1, 2], every=2, of=9, end=End(2, error=RuntimeError()), late=9)
    assert said[-1] == "rescued 2" and told == []


def test_nothing_is_saved_after_an_error_or_before_the_end():
    assert saved([1, 2], of=9, end=End(2, "SIGTERM", RuntimeError()))[0] == []
    assert saved([1, 2], of=9, end=End(2))[0] == []


def test_the_last_checkpoint_that_failed_ends_the_run():
    with pytest.raises(
        NotSaved, match=r"^step is not saved; make room and continue with checkpoint.resume=auto$"
    ):
        saved([1, 2], failing=[2], end=End(2))
    assert saved([1, 2], every=1, failing=[1], end=End(2))[2] == [Progress(2, 20)]  # a later one was
    saved([1], failing=[1], end=End(1, error=RuntimeError()))  # what was raised first stands
