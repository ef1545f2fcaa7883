"""Runs a variant or a control on ranks of its own, and says what was found."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import version
from platform import python_version

from tests.emulated.queues import held_up, left_over
from tests.races.controls import IN_PROCESS, site
from tests.races.report import QUEUES, Found, Result
from tests.races.variants import variants
from tests.ranks import RanksFailed, run_ranks

WORKER = "tests.races.worker"
INTERPRETED = "tests.fuzz.interpreted"  # comes before Triton


def judged(name: str, without: str | None = None, timeout: float = 240) -> Result:
    """Of a variant, without the synchronisation at a site if one is named."""
    start, error, ranks = time.monotonic(), None, []
    try:
        ranks = found(name, without, timeout)
    except RanksFailed as failure:
        error = str(failure)
    hangs = {queues: _held(ranks, queues) for queues in QUEUES if left_over([r.log for r in ranks], queues)}
    findings: dict[str, int] = {}
    for number, rank in enumerate(ranks):
        for words, count in rank.findings.items():
            findings[f"rank {number}: {words}"] = count
    return Result(
        name,
        without,
        ranks=len(ranks),
        operations=sum(sum(rank.operations.values()) for rank in ranks),
        streams=max((len({item.stream for item in rank.log if item.stream}) for rank in ranks), default=0),
        findings=findings,
        hangs=hangs,
        seconds=time.monotonic() - start,
        error=error,
        versions=", ".join(
            [f"Python {python_version()}", *(f"{p} {version(p)}" for p in ("torch", "megatron-core"))]
        ),
        date=datetime.now(UTC).date().isoformat(),
    )


def found(name: str, without: str | None = None, timeout: float = 240) -> list[Found]:
    """By rank. RanksFailed if a rank failed."""
    removed = site(without) if without else None
    if name == IN_PROCESS:
        return run_ranks(1, f"{WORKER}:handed_over", removed, timeout=timeout, preload=(WORKER,))
    one = variants()[name]
    preload = (INTERPRETED, WORKER) if one.interpreted else (WORKER,)
    arguments = one.config(), removed, one.steps, one.small_buckets, one.evaluates, one.moved
    return run_ranks(one.ranks, f"{WORKER}:found", *arguments, timeout=timeout, preload=preload)


def _held(ranks: list[Found], queues: int) -> list[str]:
    return held_up([rank.log for rank in ranks], queues)
