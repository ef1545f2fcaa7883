"""Runs a case and says whether what it shows is right.

1. `config` for two steps, with a checkpoint after each.
2. The same from a copy of the directory without the second checkpoint: its second step has to be the first run's, bit
   for bit, in weights, buffers, optimizer state, metrics and dropout.
3. `other`, another layout of the same model, from another copy: within the bounds of the table of layouts in fp32 and
   fp64 without dropout, else finite and without masks that were drawn before.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hcmegatron.config.schema import Config
from tests.fuzz.cases import Case
from tests.fuzz.report import Report
from tests.layouts.table import assemble
from tests.ranks import Outcome, observe_ranks

LIMIT = 1e-5  # tests.layouts.test_layouts
SECONDS = 150  # of one of the three runs
INTERPRETED = 400  # the same with Triton's interpreter
COMPARED = ("loss", "grad_norm", "lr")  # metrics that say nothing of time or memory


class Finding(AssertionError):
    """What should not be. `kind` is short and the same whenever the same thing goes wrong."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Refused(Exception):
    """A ConfigError in one line, on every rank, before the first step."""


@dataclass(frozen=True)
class Verdict:
    """passed: everything was compared. refused: the run or its resumption was not accepted. failed: a finding."""

    result: str
    text: str
    kind: str
    seconds: float


def judge(case: Case, directory: Path) -> Verdict:
    """Run a case in an empty `directory`, which is left as it is."""
    start = time.monotonic()
    try:
        result = "passed", _examine(case, directory), ""
    except Refused as refused:
        result = "refused", str(refused), ""
    except Finding as finding:
        result = "failed", str(finding), finding.kind
    return Verdict(*result, time.monotonic() - start)


def _examine(case: Case, directory: Path) -> str:
    corpus, exact = write_corpus(directory / "text"), comparable(case)
    first = directory / "first"
    whole = _train("first run", case.config, case.ranks, first, corpus, 1, exact)
    _finite(first, [1, 2])
    _masks(whole)

    _as_after_one_step(first, directory / "resumed")
    resumed = _train("resumed", case.config, case.ranks, directory / "resumed", corpus, 2)
    _finite(directory / "resumed", [1, 2])
    _same_bits(whole, resumed, first, directory / "resumed")

    _as_after_one_step(first, directory / "other")
    other = _train("another layout", case.other, case.other_ranks, directory / "other", corpus, 2, exact)
    _finite(directory / "other", [1, 2])
    _masks(other, before=[mask for rank in whole for mask in rank.masks.get(1, [])])
    if exact:
        return f"another layout: {_within_bounds(case, whole, other, first, directory / 'other'):.1e}"
    return "another layout: finite"


def comparable(case: Case) -> bool:
    """Whether the layouts differ by rounding alone, and that little.

    Dropout's masks are drawn for a micro-batch, and for the part of it that a tensor-parallel rank has.
    """
    one, other = case.config, case.other
    if one.model.hidden_dropout or one.model.attention_dropout:
        split = one.parallel.tensor * other.parallel.tensor > 1
        if split or one.training.micro_batch != other.training.micro_batch:
            return False
    return one.training.dtype != "bf16"


def write_corpus(directory: Path) -> Path:
    """Short documents, so that several are in a sequence, and a few long ones; always the same."""
    directory.mkdir(exist_ok=True)
    for number in range(48):
        length = 7 + number * number % 61 if number % 8 else 900
        text = "".join(chr(32 + (number * 31 + i * i * 7 + i // 5) % 95) for i in range(length))
        (directory / f"{number:02}.txt").write_text(text)
    return directory


def _train(
    what: str, config: Config, ranks: int, directory: Path, corpus: Path, first: int, values: bool = False
) -> list[Report]:
    """A run in `directory` from 1-based step `first` on, which resumes where that is not 1."""
    config = copy.deepcopy(config)
    config.run.dir, config.data.paths = str(directory), [str(corpus)]
    config.checkpoint.resume = "auto" if first > 1 else "never"
    interpreted = config.kernels == "triton"
    outcomes = observe_ranks(
        ranks,
        "tests.fuzz.worker:run",
        config,
        first,
        values,
        # Triton decides when it is imported whether to interpret
        preload=(*(["tests.fuzz.interpreted"] if interpreted else []), "tests.fuzz.worker"),
        process_group=False,
        timeout=INTERPRETED if interpreted else SECONDS,
    )
    said = "\n".join(map(str, outcomes))
    if any(outcome.exit_code for outcome in outcomes):
        raise Finding(f"{what} ended with {_cause(outcomes)}", said)
    if any("Traceback" in outcome.output for outcome in outcomes):
        raise Finding(f"{what} printed a traceback", said)
    reports: list[Report] = [outcome.result for outcome in outcomes]
    refusals = {report.refused for report in reports}
    if refusals != {None}:
        (line, *others) = refusals
        if others:
            raise Finding(f"{what} was refused on some ranks", str(refusals))
        if "\n" in line or any(report.steps for report in reports):
            raise Finding(f"{what} was refused too late or in several lines", f"{line}\n{said}")
        raise Refused(f"{what}: {line}")
    expected = 3 - first
    if any(report.steps != expected for report in reports):
        raise Finding(
            f"{what} trained other steps", f"{[report.steps for report in reports]}, not {expected}"
        )
    return reports


def _cause(outcomes: list[Outcome]) -> str:
    """The last line of the first rank that raised, without numbers: the others often only lost their peer."""
    errors = [outcome.error.strip().splitlines()[-1] for outcome in outcomes if outcome.error]
    blamed = [line for line in errors if "gloo" not in line.lower() and "Connection" not in line] or errors
    if not blamed:
        return "a hang" if any(outcome.overtime for outcome in outcomes) else "a dead rank"
    return "".join(char for char in blamed[0] if not char.isdigit())[:160]


def _as_after_one_step(first: Path, to: Path) -> None:
    shutil.copytree(first, to)
    shutil.rmtree(to / "checkpoints/step-00000002")


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _finite(directory: Path, steps: list[int]) -> None:
    lines = metrics(directory)
    trained = [line["step"] for line in lines if line["kind"] == "train"]
    if trained != steps:
        raise Finding("metrics.jsonl has other steps", f"{trained}, not {steps} in {directory}")
    for line in lines:
        for key in COMPARED:
            value = line.get(key, 0.0)
            if not isinstance(value, float | int) or not math.isfinite(value):
                raise Finding("not finite", f"{key} in {line}")


def _same_bits(whole: list[Report], resumed: list[Report], first: Path, second: Path) -> None:
    def numbers(directory: Path) -> list[tuple]:
        return [
            (line["kind"], *(line.get(key) for key in COMPARED))
            for line in metrics(directory)
            if line["step"] == 2
        ]

    if numbers(first) != numbers(second):
        raise Finding("metrics differ after resuming", f"{numbers(first)}\nand\n{numbers(second)}")
    for rank, (ours, theirs) in enumerate(zip(resumed, whole, strict=True)):
        if ours.masks.get(2) != theirs.masks.get(2):
            raise Finding("dropout differs after resuming", f"on rank {rank}")
        expected, found = theirs.state[2], ours.state[2]
        if expected.keys() != found.keys():
            raise Finding(
                "state has other parts after resuming", f"rank {rank}: {set(expected) ^ set(found)}"
            )
        if differ := [name for name in expected if expected[name] != found[name]]:
            raise Finding("bits differ after resuming", f"rank {rank}, {len(differ)} tensors: {differ[:6]}")


def _masks(ranks: list[Report], before: list[str] = ()) -> None:
    """No mask twice: not on one rank, nor on ranks that hold different layers or data, nor one drawn `before`."""
    by_place: dict[tuple[int, int], set[str]] = {}
    for number, rank in enumerate(ranks):
        drawn = Counter(mask for step in rank.masks.values() for mask in step)
        if twice := [mask for mask, count in drawn.items() if count > 1]:
            raise Finding("masks drawn twice on a rank", f"{len(twice)} of {len(drawn)} on rank {number}")
        if again := drawn.keys() & set(before):
            raise Finding("masks of an earlier step drawn again", f"{len(again)} of {len(drawn)}")
        by_place.setdefault(rank.place[:2], set()).update(drawn)
    seen = Counter(mask for masks in by_place.values() for mask in masks)
    if shared := [mask for mask, count in seen.items() if count > 1]:
        raise Finding("masks shared by ranks of different layers or data", f"{len(shared)} of {len(seen)}")


def _within_bounds(case: Case, whole: list[Report], other: list[Report], first: Path, second: Path) -> float:
    """The largest error of the second step, in units of the layout table: see tests.layouts.table.largest_error."""
    expected, found = (
        next(line for line in metrics(path) if line["step"] == 2 and line["kind"] == "train")
        for path in (first, second)
    )
    norm = expected["grad_norm"]
    errors = {
        "loss": abs(found["loss"] - expected["loss"]) / expected["loss"],
        "gradient norm": abs(found["grad_norm"] - norm) / norm,
        "gradient": _largest([r.gradients[2] for r in whole], [r.gradients[2] for r in other]) / norm,
    }
    weights = [[r.weights[step] for r in whole] for step in (1, 2)]
    moved = _largest(*weights)
    rounding = 2**-22 * _largest_value(weights[1])
    # Adam divides by a gradient's own size, so that with a small epsilon rounding alone may turn a step around.
    limit = LIMIT if case.config.optimizer.eps == 1 else 4
    weight_error = _largest(weights[1], [r.weights[2] for r in other])
    errors["weights"] = max(0.0, weight_error - rounding) / moved * LIMIT / limit if moved else weight_error
    wrong = {name: error for name, error in errors.items() if not error <= LIMIT}
    if wrong:
        raise Finding(f"another layout differs in {', '.join(wrong)}", f"{wrong}; the limit is {LIMIT}")
    return max(errors.values())


def _largest(reference: list[list], ranks: list[list]) -> float:
    """The largest difference between two runs' global tensors. The vocabulary may be padded differently."""
    whole = assemble([part for rank in reference for part in rank])
    most = 0.0
    for rank in ranks:
        for key, leading, offset, values in rank:
            if (key, leading) not in whole:
                raise Finding("another layout has other tensors", f"{key} {leading}")
            expected = whole[key, leading]
            common = tuple(
                slice(o, max(o, min(o + size, there)))
                for o, size, there in zip(offset, values.shape, expected.shape, strict=True)
            )
            ours = values[tuple(slice(0, region.stop - region.start) for region in common)]
            if ours.size:
                most = max(most, float(np.abs(ours - expected[common]).max()))
    return most


def _largest_value(ranks: list[list]) -> float:
    return max(float(np.abs(values).max()) for rank in ranks for *_, values in rank if values.size)
