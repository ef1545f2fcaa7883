"""What was found, in memory, as JSON lines and as a table. No torch."""

from __future__ import annotations

import json
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
        values = json.loads(line)
        values["hangs"] = {int(queues): words for queues, words in values["hangs"].items()}
        result = Result(**values)
        found[result.key] = result
    return list(found.values())


def append(file: Path, result: Result) -> None:
    with file.open("a") as lines:
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
    """In Markdown: variants, then controls."""
    variants = [result for result in results if result.without is None]
    controls = [result for result in results if result.without is not None]
    lines = [
        totals(results).words() + ".",
        "",
        f"| variant | ranks | streams | operations | findings | {' | '.join(f'{n} queues' for n in QUEUES)} |",
        f"|---|{'---|' * (4 + len(QUEUES))}",
    ]
    for each in variants:
        ends = " | ".join("hangs" if queues in each.hangs else "ends" for queues in QUEUES)
        said = "did not end" if each.error else len(each.findings)
        lines.append(
            f"| {each.variant} | {each.ranks} | {each.streams} | {each.operations} | {said} | {ends} |"
        )
    lines += ["", "| without | in variant | findings | the first of them |", "|---|---|---|---|"]
    for each in sorted(controls, key=lambda each: each.without):
        first = next(iter(each.findings), "") or next(iter(each.hangs.get(QUEUES[0], ())), "none")
        lines.append(f"| {each.without} | {each.variant} | {len(each.findings)} | {first} |")
    return "\n".join(lines) + "\n"
