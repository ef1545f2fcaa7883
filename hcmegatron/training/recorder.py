"""metrics.jsonl and the log's lines of steps and evaluations, from rank 0."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.training.observer import End, Evaluation, Observer, Rewind, Step, is_due
from hcmegatron.training.sink import Sink, writable

if TYPE_CHECKING:
    from hcmegatron.diagnostics.files import Observation
    from hcmegatron.training.setup import TrainingRun


class Recorder(Observer):
    """Writes every step's and evaluation's figures to metrics.jsonl, and says them.

    Metrics of the run's first step and later ones, left by a run that was cut off, are dropped.

    Raises:
        ConfigError: the run directory cannot be written.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.log, self.training, self.directory = run.log, run.config.training, run.directory
        dropped = self._open_after(run.position.step)
        if dropped:
            run.log.say(f"metrics.jsonl: lines left out because they hold no metrics of a step: {dropped}")

    def on_step(self, step: Step) -> None:
        """One line each for metrics.jsonl and the log."""
        self._metrics.write(metrics_line({"step": step.number, "kind": "train", **step.metrics}))
        steps = self.training.steps
        line = "  ".join([f"step {step.number:>{len(str(steps))}}/{steps}", *step.shown])
        show = is_due(step.number, self.training.log_every, steps)
        self.log.step(step.number, line, f"loss {step.result.loss:.3f}", show)

    def on_eval(self, evaluation: Evaluation) -> None:
        """The loss on held-out text, nats a byte, beside what needs no model."""
        step, figures, sources = evaluation.step, evaluation.figures, evaluation.sources
        sample = {} if evaluation.sample is None else {"sample": evaluation.sample}
        self._metrics.write(metrics_line({"step": step, "kind": evaluation.kind, **figures, **sample}))
        uniform, unigram = (
            evaluation.together(getattr(source, name) * source.bytes for source in sources)
            for name in ("uniform", "unigram")
        )
        self.log.say(
            f"step {step}: {evaluation.kind} loss {figures['loss']:.4f} nats a byte, "
            f"{figures['bits_per_byte']:.4f} bits (uniform {uniform:.2f}, unigram {unigram:.2f} nats)",
            *(f"  {name}: {value:.4f}" for name, value in evaluation.by_source.items()),
            *(f"  {self.training.eval_prompt} -> {_in_one_line(text)}" for text in sample.values()),
        )

    def on_observation(self, observation: Observation) -> None:
        """Its figures."""
        if observation.scalars:
            line = {"step": observation.step, "kind": "diagnostics", **observation.scalars}
            self._metrics.write(metrics_line(line))

    def on_rewind(self, rewind: Rewind) -> None:
        """Metrics of the steps that come once more are dropped; one line says what was there."""
        before = self._metrics
        before.write("")  # what is waiting for room
        try:
            self._open_after(rewind.to.step)
        except ConfigError as error:  # a full disk, say: no reason to lose the run, nor the lines to come
            self.log.report(f"metrics.jsonl has repeated steps twice, and training goes on: {error}")
        else:
            before.close()
        gone = {"rewound_from": rewind.step.number, **rewind.step.metrics}
        left_out = [rewind.left_out.start, rewind.left_out.stop]
        line = {"step": rewind.to.step, "kind": "rewind", **gone, "left_out": left_out}
        self._metrics.write(metrics_line(line))

    def on_end(self, end: End) -> None:
        """Write what is left."""
        self._metrics.close()

    def _open_after(self, step: int) -> int:
        """Open metrics.jsonl without the lines of later steps; how many were dropped that are none of a step."""
        path = self.directory / "metrics.jsonl"
        with writable(self.directory):
            dropped = drop_later_metrics(path, step + 1)
            self._metrics = Sink.append(path, self.log.report)
        return dropped


def _in_one_line(text: str) -> str:
    """As JSON, and nothing in it that steers a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in json.dumps(text, ensure_ascii=False))


def metrics_line(metrics: dict[str, Any]) -> str:
    """A line of metrics.jsonl. JSON has no NaN: such numbers are null, and under "nonfinite" by name and in words."""
    odd = {
        name: str(value)
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    if odd:
        metrics = {name: None if name in odd else value for name, value in metrics.items()} | {
            "nonfinite": odd
        }
    return json.dumps(metrics, allow_nan=False) + "\n"


def drop_later_metrics(path: Path, first_step: int) -> int:
    """Leave out of metrics.jsonl the lines of first_step and later, and those that are no metrics of a step.

    Returns:
        how many were no metrics, such as the torn last line of a run that was killed.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines()
    steps = [_step_of(line) for line in lines]
    kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step < first_step]
    # At once or not at all: a full disk must not cost the lines that are there.
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.writelines(line + b"\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return steps.count(None)


def _step_of(line: bytes) -> int | None:
    """Of a line of metrics.jsonl; None for what is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or brackets without end
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int else None
