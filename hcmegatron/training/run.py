"""The training loop. Read from top to bottom; each call leads into one room."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from hcmegatron.config.schema import Config
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus, find_corpus
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import on_first_rank
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.exit_status import STOPPED
from hcmegatron.platform.launcher_end import tell_stopped
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo
from hcmegatron.training import checkpoint, resume
from hcmegatron.training.observer import End, Evaluation, Step, is_due
from hcmegatron.training.observer_registry import Factory, build_observers, named_factory
from hcmegatron.training.optimizer import learning_rate, set_learning_rate
from hcmegatron.training.run_directory import choose_directory
from hcmegatron.training.sample_text import sample_text
from hcmegatron.training.setup import TrainingRun, assemble_run, warn_of_environment
from hcmegatron.training.stopping import StopFlag


def train(
    config: Config,
    ranks: RankInfo,
    name: str = "run",
    corpus: Corpus | PreparedCorpus | None = None,
    observers: Iterable[Factory] = (),
) -> int:
    """Train as `config` says, on this rank. Returns the process's exit status (platform/exit_status.py).

    Args:
        name: of the run directory that is made where run.dir is not set.
        corpus: of config.data, where it has been looked for already.
        observers: more than the configuration asks for, each made of its run (observer.py).

    Raises:
        ConfigError: a checkpoint, run directory or observer that cannot be used.
        Ended: after training.max_bad_steps non-finite steps in a row, or without the last checkpoint.
    """
    for observer in config.run.observers:
        named_factory(observer)  # a mistake is found before anything is started or written
    corpus = corpus or find_corpus(config.data)
    warn_of_environment(config, ranks)
    with process_groups(config, ranks, corpus.fingerprint) as groups:
        stop = StopFlag(launched=ranks.apart)
        path: Path = on_first_rank(lambda: choose_directory(config, name))
        start = checkpoint.find(config, path, corpus.fingerprint)
        if start and start.position.step == config.training.steps and not results_left(config, path):
            if ranks.rank == 0:
                for line in resume.finished(start):
                    standard_streams.tell(f"hcmegatron: {line}")
            return 0
        with assemble_run(config, ranks, groups, corpus, path, start) as run:
            run.log.say(*run.introduction)
            done = loop(run, stop, observers)
            run.log.say(f"run directory: {path}")
    return 0 if done == config.training.steps else stopped(stop, ranks)


def stopped(stop: StopFlag, ranks: RankInfo) -> int:
    """The exit status of a run that was told to end before its last step."""
    if stop.orphaned:
        return 1
    if ranks.source == STARTED_HERE:
        return STOPPED
    return tell_stopped(os.environ) if ranks.rank == 0 else 0


def results_left(config: Config, path: Path) -> bool:
    """Whether a finished run lacks its last evaluation, or that of its test sets: it ended before, or they were added.
    Collective."""
    kinds = ["validation"] if config.data.validation or config.data.holdout else []
    kinds += ["test"] if config.data.test else []
    last = config.training.steps
    return on_first_rank(lambda: not all(resume.evaluated(path, last, kind) for kind in kinds))


def loop(run: TrainingRun, stop: StopFlag, more: Iterable[Factory] = ()) -> int:
    """Step after step, until the last one or until any rank is told to stop; how many are done. Collective."""
    training = run.config.training
    with build_observers(run, more) as observers:
        run.observers = observers
        if not stop.agreed():
            run.log.say(*run.stepper.rehearse())
        observers.on_start()
        if evaluation_left(run):
            evaluate_held_out(run, stop)
        while run.position.step < training.steps and not stop.agreed():
            step = one_step(run, run.position.step + 1, run.position.samples)
            run.position = run.after(step)
            observers.on_step(step)
            done = run.position.step
            if done < step.number:
                continue  # the run has gone back to a checkpoint
            if run.validations and is_due(done, training.eval_every, training.steps):
                evaluate_held_out(run, stop)
        if run.tests and run.position.step == training.steps:
            observers.on_eval(evaluate(run, training.steps, never, "test"))
        observers.on_end(End(run.position.step, stop.name))
    return run.position.step


def evaluation_left(run: TrainingRun) -> bool:
    """Whether the run goes on from a checkpoint of its own whose evaluation is due and was cut off. Collective."""
    done, training = run.position.step, run.config.training
    if not (run.validations and run.checkpoints.saved == run.position):
        return False
    due = is_due(done, training.eval_every, training.steps)
    return due and not on_first_rank(lambda: resume.evaluated(run.directory, done, "validation"))


def evaluate_held_out(run: TrainingRun, stop: StopFlag) -> None:
    """The evaluation after the steps done, told to the observers. Collective."""
    done = run.position.step
    # The last one is not cut short.
    evaluation = evaluate(run, done, never if done == run.config.training.steps else stop.agreed)
    if evaluation is None:
        run.log.say(f"the evaluation after step {done} was cut short by {stop.name}, and has no result")
    else:
        run.observers.on_eval(evaluation)


def never() -> bool:
    """Nothing cuts an evaluation short."""
    return False


def evaluate(
    run: TrainingRun,
    step: int,
    stopped: Callable[[], bool],
    kind: Literal["validation", "test"] = "validation",
) -> Evaluation | None:
    """The loss on each source's held-out text, or on the test sets; None where the run was `stopped` before the end.
    Collective.

    Asked between groups of micro-batches that take about as long as a step: of one, the forward is a third.
    """
    group, totals = 3 * run.stepper.batches.micro_batches, []
    sources = run.validations if kind == "validation" else run.tests
    for held in sources:
        total = 0.0
        for first in range(0, held.micro_batches, group):
            if stopped():
                return None
            count = min(group, held.micro_batches - first)
            total += run.stepper.evaluate(lambda index, held=held, first=first: held(first + index), count)
        totals.append(total)
    sample = None
    if kind == "validation" and run.config.training.eval_prompt is not None:
        sample = sample_text(run.network(), stopped, run.log.say)
    return Evaluation(step, totals, sources, kind, sample)


def one_step(
    run: TrainingRun, number: int, seen: int, clock: Callable[[], float] = time.perf_counter
) -> Step:
    """Step `number` (1-based), after `seen` samples, timed."""
    began = clock()
    settings = run.config.optimizer
    rate = learning_rate(number, settings, run.config.training.steps)
    set_learning_rate(run.optimizer, rate, settings.weight_decay)
    with run.observers.listening(run, number):
        result = run.stepper.step(seen)
    return Step(number, result, rate, clock() - began)
