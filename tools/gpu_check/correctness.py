"""Whether results are right on a device: its tests, overlapped against serialised training, every schedule."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tools.gpu_check.processes import ROOT
from tools.gpu_check.worker import Child, PhaseContext, ranks

PROCESSES = 6  # that share the device, each with a context of its own
# These have phases of their own.
ELSEWHERE = (
    "tests/runtime/test_in_process_cuda.py",
    "test_overlapped_and_serialised_runs_are_equal_over_200_steps",
)
CASES = ("plain", "block", "all-to-all")  # of tests/pipeline/cuda_run.py, whose import takes its time
STEPS = {False: 25, True: 1}  # by: miniature


def tests(work: PhaseContext) -> None:
    """`pytest -m cuda`, its tests shared out over processes; a row for each test."""
    count = 1 if work.miniature else max(1, min(PROCESSES, len(os.sched_getaffinity(0)) // 2))
    shares = [{"share": index, "of": count} for index in range(count)]
    work.children(
        *(
            Child(f"tests {share['share'] + 1} of {count}", f"{__name__}:some_tests", arguments=share)
            for share in shares
        )
    )


def files() -> list[str]:
    """That have tests which need a GPU."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        if "mark.cuda" in path.read_text() and name not in ELSEWHERE:
            found.append(name)
    return found


def some_tests(work: PhaseContext) -> None:
    """One process's share.

    Raises:
        RuntimeError: pytest could not run them.
    """
    import pytest

    arguments = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", str(ROOT)]
    status = pytest.main([*arguments, *(str(ROOT / name) for name in files())], plugins=[_Rows(work)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with status {int(status)}; what it said is above")


class _Rows:
    """A plugin of pytest: takes every so-manieth test, and writes its outcome down."""

    def __init__(self, work: PhaseContext) -> None:
        self.work, self.left = work, work.arguments

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        wanted = [item for item in items if not any(name in item.nodeid for name in ELSEWHERE)]
        items[:] = wanted[self.left["share"] :: self.left["of"]]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.work.check(report.nodeid, False, _last_line(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.work.skipped(report.nodeid, reason)
        elif report.failed:  # also in what comes before or after it
            self.work.check(f"{report.nodeid}, {report.when}", False, _last_line(report))
        elif report.when == "call":
            self.work.check(report.nodeid, True, f"{report.duration:.1f} s")


def _last_line(report: Any) -> str:
    """What a failure is told by: the last line that names an error, for some end with a picture of the place."""
    said = str(report.longrepr).splitlines() or [""]
    lines = [line for line in said if line.startswith("E ")] or said
    named = [line for line in lines if re.search(r"Error\b|Exception\b", line)] or lines
    return " ".join(named[-1].split())[:200]


def equality(work: PhaseContext) -> None:
    """Metrics and weights of overlapped and serialised training, bit for bit."""
    from hcmegatron.platform.ranks import free_port

    cases = CASES[-1:] if work.miniature else CASES
    with tempfile.TemporaryDirectory() as folder:
        runs = [(case, how) for case in cases for how in ("overlap", "serialised")]
        children = [
            ranks(
                1,
                f"{__name__}:one_run",
                free_port(),
                {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
                f"{case}, {how}",
                case=case,
                how=how,
                directory=f"{folder}/{case}/{how}",
            )
            for case, how in runs
        ]
        work.children(*(child for own in children for child in own))
        for case in cases:
            what = f"{case}: overlapped and serialised are equal"
            both = [_left_by(Path(folder, case, how)) for how in ("overlap", "serialised")]
            if None in both:
                work.check(what, False, "a run did not end")
            else:
                unequal = first_difference(*both)
                work.check(what, not unequal, unequal or f"{len(both[0][0])} steps")


def one_run(work: PhaseContext) -> None:
    """Training that leaves metrics and digests of weights."""
    from tests.pipeline import cuda_run

    asked, usual = work.arguments, cuda_run.small_case

    def case() -> Any:
        config = usual()
        if work.miniature:
            config.data.sequence_length, config.training.dtype = 16, "fp32"
            config.training.eval_batches, config.training.threads = 1, 1
        return config

    with mock.patch.object(cuda_run, "small_case", case):
        cuda_run.main(asked["directory"], asked["case"], asked["how"] == "overlap", STEPS[work.miniature])


def train(work: PhaseContext) -> None:
    """One rank of a short run of the quickstart."""
    from hcmegatron.config import check_config
    from hcmegatron.config.load import load_config
    from hcmegatron.platform.ranks import discover_ranks
    from hcmegatron.training.run import train as run

    steps = 1 if work.miniature else 6
    settings = [
        f"--run.dir={work.arguments['directory']}",
        "--run.tensorboard=false",
        f"--training.steps={steps}",
    ]
    settings += ["--training.eval_every=0", "--training.eval_batches=1"]
    settings += [f"--parallel.timeout_s={120 if work.miniature else 40}"]
    if work.miniature:
        settings += ["--training.global_batch=8", "--training.micro_batch=1", "--data.sequence_length=32"]
        settings += ["--training.threads=1"]
    config = load_config("configs/quickstart.yaml", [*settings, *work.arguments["settings"]])
    check_config(config)
    if run(config, discover_ranks(os.environ)):
        raise RuntimeError("training did not end well; what it said is above")


Left = tuple[Sequence[Any], dict[str, dict[str, str]]]  # metrics by step; digests by stage and name


def _left_by(directory: Path) -> Left | None:
    try:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        weights = json.loads((directory / "weights.json").read_text())
    except OSError:
        return None
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line], weights


def first_difference(one: Left, other: Left) -> str:
    """In words; "" where there is none. Pure."""
    (metrics, weights), (others, other_weights) = one, other
    if len(metrics) != len(others) or not metrics:
        return f"{len(metrics)} and {len(others)} steps"
    for mine, theirs in zip(metrics, others, strict=True):
        if tuple(mine) != tuple(theirs):
            return f"step {mine[0]}: {mine[1:]} and {theirs[1:]}"
    for stage, digests in weights.items():
        for name, digest in digests.items():
            if other_weights.get(stage, {}).get(name) != digest:
                return f"stage {stage}: {name}"
    return ""


def schedules(work: PhaseContext) -> None:
    """Every schedule with its ranks in one process, on a GPU a stream for each, against one process on the CPU."""
    import torch

    from schedules import GENERATORS
    from tests.runtime.equality import SIZES, check_in_process
    from tests.runtime.stages import LateStage

    kinds = {} if work.miniature else {"late on the device": LateStage}
    for size in list(SIZES)[:1] if work.miniature else SIZES:
        for name in GENERATORS:
            for words, kind in {"": None, **kinds}.items():
                what = ", ".join(filter(None, [name, f"{size} ranks", words]))
                options = {"kind": kind} if kind else {}
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        check_in_process(name, size, Path(folder), torch.device(work.device), **options)
                    except Exception as error:  # the others are still of interest
                        work.check(what, False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
                    else:
                        work.check(what, True, f"{time.perf_counter() - start:.2f} s")
