"""What the loop tells its observers, in which order, and what they get to see. Without a model, but for the last."""

import importlib
import json
import pkgutil
import re
from types import SimpleNamespace

import pytest

from hcmegatron import training
from hcmegatron.config import Config, ConfigError
from hcmegatron.training import observer_registry, run
from hcmegatron.training.heartbeat import Heartbeat
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Observer, Observers, Step, is_due
from hcmegatron.training.saving import Saving
from hcmegatron.training.step import StepResult
from tests.ranks import ROOT, run_ranks
from tests.small_configs import put, tiny
from tests.training import observer_workers


class Noting(Observer):
    """Notes what it is told."""

    def __init__(self, notes):
        self.notes = notes

    def on_start(self):
        self.notes.append("start")

    def on_step(self, step):
        self.notes.append(f"step {step.number}")

    def on_eval(self, evaluation):
        kind = "eval" if evaluation.kind == "validation" else evaluation.kind
        self.notes.append(f"{kind} {evaluation.step}: {evaluation.loss}")

    def on_checkpoint(self, saved):
        self.notes.append(f"checkpoint {saved.step}")

    def on_rewind(self, rewind):
        self.notes.append(rewind)

    def on_end(self, end):
        self.notes.append(f"end {end.step} {end.stopped_by}{type(end.error).__name__ if end.error else ''}")


class Checkpoints:
    """Saves nothing, and fails where it is told to."""

    def __init__(self, failing=()):
        self.saved, self.failed, self.failing = None, None, failing

    def save(self, at, keep_older=False):
        self.failed = "no room" if at.step in self.failing else None
        if at == self.saved or self.failed:
            return []
        self.saved = at
        return []

    def arrived(self):
        return False

    def finish(self):
        return []

    rescue = finish


def looped(
    monkeypatch,
    steps=4,
    stop_before=None,
    skipped=(),
    every=2,
    eval_every=3,
    failing=(),
    start=0,
    tests=(),
    own=False,
):
    """The loop over a run without a model. Returns what observers were told, what was said, and what it raised."""
    config = Config()
    config.training.steps, config.training.eval_every, config.checkpoint.save_every = steps, eval_every, every
    config.run.tensorboard, config.training.max_bad_steps = False, 2
    notes, said, place = [], [], SimpleNamespace(step=start)
    monkeypatch.setattr(run, "set_learning_rate", lambda *arguments: None)
    monkeypatch.setattr(observer_registry, "kept_on_first_rank", lambda make: None)
    monkeypatch.setitem(observer_registry.FIRST, "metrics", observer_registry.Entry(lambda run: Noting([])))
    monkeypatch.setitem(
        observer_registry.THEN, "rank_memory", observer_registry.Entry(lambda run: Noting([]))
    )

    def stepped(seen):
        place.step += 1
        updated = place.step not in skipped
        return StepResult(1.0, 1.0, updated, range(seen, seen + 2), 0.0)

    whole = SimpleNamespace(
        config=config,
        validations=[SimpleNamespace(micro_batches=1, bytes=2)],
        tests=tests,
        stepper=SimpleNamespace(
            step=stepped,
            evaluate=lambda *_: 3.0,
            rehearse=lambda: ["rehearsed"],
            batches=SimpleNamespace(micro_batches=1),
        ),
        log=SimpleNamespace(say=lambda *lines: said.extend(lines)),
        position=Progress(start, 2 * start),
        after=lambda step: Progress(step.number, step.result.samples.stop),
        ranks=SimpleNamespace(rank=1),
        checkpoints=Checkpoints(failing),
        optimizer=None,
        chunks=[],
        directory=None,
    )
    if own:
        whole.checkpoints.saved = whole.position
    stop = SimpleNamespace(
        agreed=lambda: stop_before is not None and place.step >= stop_before - 1, name="SIGTERM"
    )
    stop.name = "SIGTERM" if stop_before else ""
    raised = None
    try:
        run.loop(whole, stop, [lambda run: Noting(notes)])
    except RuntimeError as error:
        raised = str(error)
    return notes, said, raised


def test_what_happens_in_a_run(monkeypatch):
    notes, said, raised = looped(monkeypatch)
    assert notes == [
        *("start", "step 1", "step 2", "checkpoint 2", "step 3", "eval 3: 1.5"),
        *("step 4", "checkpoint 4", "eval 4: 1.5", "end 4 "),
    ]
    assert said == ["rehearsed"] and raised is None


def test_test_sets_are_evaluated_once_at_the_end(monkeypatch):
    sets = [SimpleNamespace(micro_batches=2, bytes=n) for n in (1, 5)]
    notes, *_ = looped(monkeypatch, tests=sets)
    assert notes[-3:] == ["eval 4: 1.5", "test 4: 1.0", "end 4 "] and str(notes).count("test") == 1
    assert "test" not in str(looped(monkeypatch, stop_before=4, tests=sets)[0])


def test_a_run_that_goes_on(monkeypatch):
    assert looped(monkeypatch, start=3)[0] == ["start", "step 4", "checkpoint 4", "eval 4: 1.5", "end 4 "]


def test_an_evaluation_that_was_cut_off_is_made_up_for(monkeypatch):
    """By a run that goes on from its own checkpoint after a step of which none is on record."""
    monkeypatch.setattr(run, "on_first_rank", lambda work: work())
    on_record = []
    monkeypatch.setattr(run.resume, "evaluated", lambda directory, step, kind: (step, kind) in on_record)
    begun = ["start", "eval 3: 1.5", "step 4", "checkpoint 4", "eval 4: 1.5", "end 4 "]
    assert looped(monkeypatch, start=3, own=True)[0] == begun
    assert looped(monkeypatch, start=4, own=True)[0] == ["start", "eval 4: 1.5", "end 4 "]
    assert "eval 2" not in str(looped(monkeypatch, start=2, own=True)[0])  # it was not due
    on_record.append((3, "validation"))
    assert looped(monkeypatch, start=3, own=True)[0] == [begun[0], *begun[2:]]


def test_a_finished_run_has_its_results_left_where_one_is_not_on_record(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "on_first_rank", lambda work: work())
    config = put(Config(), training={"steps": 4})
    assert run.results_left(config, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "kind": "validation", "loss": 2.0}\n')
    assert not run.results_left(config, tmp_path)
    assert run.results_left(put(config, data={"test": ["x"]}), tmp_path)
    assert not run.results_left(
        put(Config(), training={"steps": 4}, data={"holdout": 0.0}), tmp_path / "nowhere"
    )


def test_a_run_that_is_told_to_stop_saves_what_it_has(monkeypatch):
    notes, said, _ = looped(monkeypatch, stop_before=4, eval_every=0)
    assert notes == ["start", "step 1", "step 2", "checkpoint 2", "step 3", "checkpoint 3", "end 3 SIGTERM"]
    assert said[-1] == "stopped by SIGTERM after step 3; continue with checkpoint.resume=auto"
    notes, said, _ = looped(monkeypatch, stop_before=4, eval_every=3)
    assert not [note for note in notes if note.startswith("eval")]  # it does not wait for an evaluation
    notes, said, _ = looped(monkeypatch, stop_before=1)
    assert notes == ["start", "end 0 SIGTERM"]
    assert said[-1] == "stopped by SIGTERM after step 0; no checkpoint was saved"


def test_steps_that_were_skipped(monkeypatch):
    notes, said, _ = looped(monkeypatch, skipped=[2, 4], eval_every=0)
    assert notes[:4] == ["start", "step 1", "step 2", "step 3"] and "checkpoint 2" not in notes
    assert "checkpoint 4" in notes  # the run is finished
    assert sum("skipped: loss" in line for line in said) == 2
    notes, said, raised = looped(monkeypatch, skipped=[2, 3])
    assert raised.startswith("2 non-finite steps in a row; the last was step 3, sequences 4 to 5")
    assert notes[-1] == "end 3 Diverged" and "checkpoint 3" not in notes


def test_the_last_checkpoint_that_failed_is_raised_when_all_have_ended(monkeypatch):
    notes, _, raised = looped(monkeypatch, failing=[4])
    assert raised == "no room; make room and continue with checkpoint.resume=auto"
    assert [note for note in notes if note.startswith("end")] == ["end 4 "]
    notes, _, raised = looped(monkeypatch, failing=[2])
    assert raised is None and "checkpoint 2" not in notes and "checkpoint 4" in notes


def test_all_observers_end_although_one_raises():
    class Failing(Observer):
        def on_end(self, end):
            raise RuntimeError("broken")

    notes = []
    with (
        pytest.raises(RuntimeError, match="broken"),
        Observers([Noting(notes), Failing(None), Noting(notes)]),
    ):
        raise ValueError("what came first")
    assert notes == ["end 0 ValueError"] * 2


@pytest.mark.parametrize("name", ["no_such_module:X", "hcmegatron.training.observer:NoSuch"])
def test_an_observer_that_is_none_is_named(name):
    with pytest.raises(ConfigError, match=rf"run\.observers = {name}: .*; write module:Class"):
        observer_registry.named_factory(name)
    assert observer_registry.named_factory("hcmegatron.training.observer:Observer") is Observer


@pytest.mark.parametrize("name", ["math:sqrt", "hcmegatron.training.observer:Step"])
def test_what_is_no_observer_is_refused_before_anything_is_written(name, monkeypatch):
    config = Config()
    config.run.observers = [name]
    monkeypatch.setattr(run, "process_groups", lambda *_: pytest.fail("started"))
    with pytest.raises(ConfigError, match=rf"run\.observers = {name}: is no Observer"):
        run.train(config, None, corpus=SimpleNamespace(fingerprint="any"))


@pytest.mark.parametrize("name", ["os:path", "hcmegatron.training.observer:is_due", "builtins:int"])
def test_an_observer_has_to_be_one(name):
    with pytest.raises(ConfigError, match=rf"run\.observers = {name}: is no Observer"):
        observer_registry.named_factory(name)


def test_all_hear_of_a_rewind():
    notes = []
    Observers([Noting(notes), Observer(None), Noting(notes)]).on_rewind("back")
    assert notes == ["back", "back"]


def saving(checkpoints, **training):
    config = put(Config(), training=training, checkpoint={"save_every": 2})
    said = []
    log = SimpleNamespace(say=lambda *lines: said.extend(lines))
    whole = SimpleNamespace(config=config, checkpoints=checkpoints, log=log, position=Progress(1, 2))
    return Saving(whole), said


def test_a_save_that_has_come_to_its_end_is_heard_of_after_the_next_step():
    checkpoints = Checkpoints()
    checkpoints.arrived, checkpoints.finish = lambda: True, lambda: ["an old one could not be removed"]
    watching, said = saving(checkpoints, steps=4)
    watching.on_step(Step(1, StepResult(1.0, 1.0, True, range(2), 0.0), 1e-3, 1.0))
    assert said == ["an old one could not be removed"]


def test_the_checkpoint_that_a_run_goes_on_from_is_no_news():
    checkpoints = Checkpoints()
    checkpoints.saved = Progress(2, 4)
    watching, _ = saving(checkpoints, steps=9)
    assert checkpoints.told == Progress(2, 4)
    watching.run.observers = None  # nobody is told
    watching.on_step(Step(3, StepResult(1.0, 1.0, True, range(4, 6), 0.0), 1e-3, 1.0))


def test_what_there_is_to_save_after_a_rewind_is_where_it_went():
    checkpoints = Checkpoints()
    watching, _ = saving(checkpoints, steps=4)
    checkpoints.saved = Progress(2, 4)
    watching.on_rewind(SimpleNamespace(to=Progress(2, 4, ((4, 6),))))
    assert watching.reached == Progress(2, 4, ((4, 6),)) and checkpoints.told == Progress(2, 4)


def test_all_hear_of_an_observation():
    class Hearing(Observer):
        def on_observation(self, observation):
            heard.append(observation)

    heard = []
    Observers([Hearing(None), Observer(None), Hearing(None)]).on_observation("seen")
    assert heard == ["seen", "seen"]


def test_an_observer_need_not_keep_its_run():
    Observer(None).on_start()


def test_an_observer_asks_for_no_coefficients_by_itself():
    assert Observer(None).wants_coefficients(1) is False


def test_who_is_asked_for():
    config = Config()
    asked = {name for name, entry in observer_registry.THEN.items() if entry.asked(config)}
    always = {"recorder", "planned", "rank_memory", "bad_steps", "checkpoints"}
    observing = {"diagnostics", "diagnostics_files"}
    assert asked == always | observing | {"tensorboard"}
    config.run.tensorboard, config.run.wandb, config.recompute.mode = False, "offline", "block"
    asked = {name for name, entry in observer_registry.THEN.items() if entry.asked(config)}
    assert asked == always | observing | {"wandb", "recomputation"}
    config.health.diverged_after = 5
    assert "divergence" in {name for name, entry in observer_registry.THEN.items() if entry.asked(config)}
    config.diagnostics.every = 0
    assert not observing & {name for name, entry in observer_registry.THEN.items() if entry.asked(config)}
    assert [name for name, entry in observer_registry.THEN.items() if entry.writes] == [
        "recorder",
        "diagnostics_files",
        "tensorboard",
        "wandb",
        "planned",
    ]


def test_every_observer_of_the_library_is_asked_for_somewhere():
    """One that is written and not named in observer_registry.py would never watch a run."""
    found = {
        value
        for module in pkgutil.iter_modules(training.__path__)
        for value in vars(importlib.import_module(f"{training.__name__}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, Observer)
    }
    named = {entry.make for entry in (*observer_registry.FIRST.values(), *observer_registry.THEN.values())}
    # Heartbeat watches where the command restarts the ranks, and is handed to `train` (cli.py)
    assert found - named == {Observer, Observers, Heartbeat}


def test_a_corpus_that_was_found_is_not_looked_for_again(monkeypatch):
    class Begun(Exception):
        pass

    def begin(config, ranks, fingerprint):
        raise Begun(fingerprint)

    monkeypatch.setattr(run, "find_corpus", lambda data: SimpleNamespace(fingerprint="looked for"))
    monkeypatch.setattr(run, "process_groups", begin)
    with pytest.raises(Begun, match="looked for"):
        run.train(Config(), None)
    with pytest.raises(Begun, match="found before"):
        run.train(Config(), None, corpus=SimpleNamespace(fingerprint="found before"))


def test_a_figure_is_in_the_line_where_it_has_words():
    step = Step(1, None, 1e-3, 1.0)
    step.add("silent", 2.0)
    step.add("said", 2.0, "{:.1f} units")
    assert step.metrics == {"silent": 2.0, "said": 2.0} and step.shown == ["2.0 units"]


def test_due():
    assert [step for step in range(1, 11) if is_due(step, 3, 10)] == [3, 6, 9, 10]
    assert [step for step in range(1, 11) if is_due(step, 0, 10)] == [10]
    assert [step for step in range(1, 5) if is_due(step, 1, 4)] == [1, 2, 3, 4]


@pytest.mark.ranks
@pytest.mark.parametrize("recompute", ["none", "block", "full"])
def test_coefficients_are_heard_once_a_micro_batch_where_they_are_asked_for(recompute, text, tmp_path):
    """In a real run: of every sub-layer and micro-batch of the step asked for, and of no other; what they are."""
    config = tiny(text, tmp_path / "run", training={"global_batch": 4}, parallel={"schedule": "1f1b"})
    config.recompute.mode = recompute
    run_options = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
    first, second = run_ranks(2, observer_workers.heard, config, **run_options)
    # four micro-batches of one; two sub-layers a rank, and n = 2 streams
    assert first["heard"] == {0: 4, 1: 4} and second["heard"] == {2: 4, 3: 4}
    for rank in (first, second):
        assert rank["steps"] == [2] and rank["row_sums"] < 1e-6
        assert rank["shapes"] == [((32, 1, 2), (32, 1, 2), (32, 1, 2, 2))]
    assert '"row_sums":' in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1]
    log = (tmp_path / "run/train.log").read_text()
    assert "  rows off by " in log
    assert log.count("planned: fits, ") == log.count("planned beside measured: rank 0 held ") == 1
    assert (tmp_path / "run/plan.json").exists()
    for rank in (0, 1):  # two pipeline ranks
        held = json.loads((tmp_path / f"run/memory/rank-00{rank}.json").read_text())
        assert held["rank"] == held["pipeline_rank"] == rank and 0.01 < held["gib"] < 100


def test_the_documents_table_of_hooks_has_all_of_them():
    rows = re.findall(r"^\| `(on_\w+)\(", (ROOT / "docs/extending.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(name for name in vars(Observer) if name.startswith("on_"))
