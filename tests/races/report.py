"""What was found, in memory, as JSON lines and as a table. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

QUEUES = (32, 16, 8, 1)  # of a device, which the hosts' programs are tried on


@dataclass
class Found:
    """Of one rank's steps.

    Attributes:
        operations: by stream.
        findings: what is wrong, in words that name both accesses, and how often.
        log: what the host enqueued (tests.emulated.streams.Item).
        gradients: a digest of every one.
    """

    operations: dict[str, int]
    findings: dict[str, int]
    log: list[Any]
    gradients: list[str]


@dataclass
class Result:
    """Of a variant, or of a control: a variant without the synchronisation `without`.

    Attributes:
        hangs: of the numbers of queues with which it does not end, which message or collective holds which stream.
        error: what ended it, if it did not come to an end.
    """

    variant: str
    without: str | None
    ranks: int
    operations: int
    streams: int
    findings: dict[str, int]
    hangs: dict[int, list[str]]
    seconds: float
    error: str | None = None
    versions: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str | None]:
        return self.variant, self.without

    @property
    def wrong(self) -> bool:
        """A finding, or a hang on as many queues as a run asks for."""
        return bool(self.error or self.findings or QUEUES[0] in self.hangs)

    @property
    def unexpected(self) -> bool:
        """A variant that is wrong."""
        return self.wrong and self.without is None

    def words(self) -> str:
        """One line."""
        what = self.variant + (f" without {self.without}" if self.without else "")
        if self.error:
            return f"{what}: did not end: {self.error.strip().splitlines()[-1]}"
        hung = ", ".join(f"{queues} queues" for queues in self.hangs)
        return (
            f"{what}: {len(self.findings)} findings in {self.operations} operations on {self.streams} streams of "
            f"{self.ranks} ranks; hangs with {hung or 'none'}; {self.seconds:.0f} s"
        )


def read(file: Path) -> list[Result]:
    """The results that are there, of each variant and control the last."""
    found: dict[tuple, Result] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # half a line, of a run that was ended while it wrote
        values["hangs"] = {int(queues): words for queues, words in values["hangs"].items()}
        result = Result(**values)
        found[result.key] = result
    return list(found.values())


def append(file: Path, result: Result) -> None:
    with file.open("a+") as lines:
        lines.seek(max(0, lines.tell() - 1))
        lines.write("" if lines.read() in ("", "\n") else "\n")  # behind half a line
        lines.write(json.dumps(asdict(result)) + "\n")


@dataclass
class Totals:
    """Of the results that there are."""

    variants: int = 0
    findings: int = 0
    hanging: dict[int, int] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)  # sites whose removal was found
    unmissed: set[str] = field(default_factory=set)  # and those that no control has found yet

    def words(self) -> str:
        hanging = ", ".join(f"{count} with {queues}" for queues, count in self.hanging.items())
        return (
            f"{self.variants} variants, {self.findings} findings; hangs: {hanging}; "
            f"{len(self.missed)} of {len(self.missed | self.unmissed)} controls found"
        )


def totals(results: Iterable[Result]) -> Totals:
    found = Totals(hanging=dict.fromkeys(QUEUES, 0))
    for result in results:
        if result.without is None:
            found.variants += 1
            found.findings += len(result.findings) + bool(result.error)
            for queues in result.hangs:
                found.hanging[queues] += 1
        elif result.wrong:
            found.missed.add(result.without)
        else:
            found.unmissed.add(result.without)
    found.unmissed -= found.missed
    return found


def table(results: list[Result]) -> str:
    """In Markdown: variants in groups, controls, every variant."""
    return "\n".join(
        (
            f"{totals(results).words()}.",
            "",
            *_groups(results),
            "",
            *_controls(results),
            "",
            *_all(results),
            "",
        )
    )


def _groups(results: list[Result]) -> list[str]:
    """One row a schedule, number of pipeline ranks, and whether it overlaps."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for each in results:
        if each.without is None:
            parts = each.variant.split("-")
            overlap = "yes" if "overlap" in parts else "no"
            groups.setdefault((*parts[:2], overlap), []).append(each)
    head = ["schedule", "pipeline", "overlap", "variants", "operations", "most streams", "findings"]
    rows = []
    for key, own in sorted(groups.items()):
        schedule, pipeline, overlap = key
        row = [schedule, pipeline.removeprefix("p"), overlap, len(own), sum(each.operations for each in own)]
        row += [max(each.streams for each in own), sum(len(each.findings) + bool(each.error) for each in own)]
        rows.append(row + [sum(queues in each.hangs for each in own) for queues in QUEUES])
    return _markdown(head + [f"hang with {queues}" for queues in QUEUES], rows)


def _controls(results: list[Result]) -> list[str]:
    head = ["without", "in variant", "findings", "the first of them"]
    rows = []
    for each in sorted(results, key=lambda each: each.without or ""):
        if each.without is not None:
            first = next(iter(each.findings), "") or next(iter(each.hangs.get(QUEUES[0], ())), "none")
            innermost = re.sub(r" < [^\]]*", "", first)
            rows.append([each.without, each.variant, len(each.findings), innermost])
    return _markdown(head, rows)


def _all(results: list[Result]) -> list[str]:
    head = [
        "variant",
        "ranks",
        "streams",
        "operations",
        "findings",
        *(f"{queues} queues" for queues in QUEUES),
    ]
    rows = [
        [each.variant, each.ranks, each.streams, each.operations]
        + ["did not end" if each.error else len(each.findings)]
        + ["hangs" if queues in each.hangs else "ends" for queues in QUEUES]
        for each in results
        if each.without is None
    ]
    return _markdown(head, rows)


def _markdown(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
