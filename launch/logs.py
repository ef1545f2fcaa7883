"""The verb `logs`: what ranks wrote, errors first, each line with the ranks that wrote it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hcmegatron.platform.agreement import in_words
from launch.job import FOLDER, LaunchError

_RANK = re.compile(r"rank-(\d+)\.log")
_ERROR = re.compile(
    r"hcmegatron: (error|rank \d+ of \d+ failed|rank \d+ was killed|rank \d+ ended)|^(srun|slurmstepd\S*): error"
    r"|\b(Segmentation fault|Out Of Memory|out of memory|oom-kill|NCCL error|CUDA error|Killed|core dumped)\b"
)
_TRACEBACK = "Traceback (most recent call last)"
# Of a rank that only lost another one: told after the others.
_CONSEQUENCE = re.compile(
    r"PeerFailed|closed by peer|Connection reset|Broken pipe|remote process exited|has gone", re.IGNORECASE
)
_OLDEST = 2**24  # bytes from the end of a log that are looked at
_SHOWN = 20  # lines of each rank


class Error(NamedTuple):
    """An error as it was written, the place of its log among all by when they were last written, and its rank."""

    text: str
    order: int
    rank: int | None  # None: the job's script, or the launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.description = "What the ranks of a run wrote: errors first, then the end of every rank's log."
    parser.add_argument("path", metavar="RUN", type=Path, help="the run directory")
    parser.add_argument("--rank", metavar="R", type=int, help="everything that this rank wrote")
    parser.add_argument("--errors", action="store_true", help="errors alone")


def main(options: argparse.Namespace) -> int:
    """Run the verb. LaunchError: no logs, or no such rank."""
    found = logs(options.path)
    if options.rank is not None:
        if options.rank not in found:
            raise LaunchError(
                f"--rank {options.rank}: {options.path} has no log of it; it has {_ranks(found)}"
            )
        print(tail(found[options.rank]), end="")
        return 0
    mistakes = errors(options.path)
    for heading, text in grouped(mistakes):
        print(f"{heading}:\n{_indented(text)}")
    for place in sorted((options.path / "hang").glob("rank-*.txt")):
        print(f"hung: {place}")
    if options.errors:
        if not mistakes:
            print("no errors")
        return 0
    for rank, path in found.items():
        lines = tail(path).splitlines()
        for line in lines[-_SHOWN:]:
            print(f"[{_name(rank)}] {line}")
    return 0


def logs(run_dir: Path) -> dict[int | None, Path]:
    """The logs by rank, in order; None: of the job's script and the launcher.

    Raises:
        LaunchError: there are none.
    """
    folder = run_dir / FOLDER
    found: dict[int | None, Path] = {}
    if (folder / "job.log").exists():
        found[None] = folder / "job.log"
    ranks = {
        int(match[1]): path
        for path in folder.glob("logs/rank-*.log")
        if (match := _RANK.fullmatch(path.name))
    }
    found |= dict(sorted(ranks.items()))
    if not found and (run_dir / "train.log").exists():  # it was started by hand
        found[0] = run_dir / "train.log"
    if not found:
        raise LaunchError(f"{run_dir}: there is no log of a run; name a run directory")
    return found


def errors(run_dir: Path) -> list[Error]:
    """All errors, the likely cause first: of the logs that were written to first, and consequences last."""
    found = logs(run_dir)
    by_age = sorted(found, key=lambda rank: found[rank].stat().st_mtime_ns)
    mistakes = [
        Error(text, order, rank)
        for order, rank in enumerate(by_age)
        for text in dict.fromkeys(blocks(tail(found[rank]).splitlines()))
    ]
    return sorted(
        mistakes, key=lambda error: (bool(_CONSEQUENCE.search(error.text)), error.rank is None, error.order)
    )


def blocks(lines: Sequence[str]) -> Iterable[str]:
    """Errors of a log: lines that say so, and tracebacks whole, with the line before that says whose."""
    at = 0
    while at < len(lines):
        if _TRACEBACK in lines[at]:
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or lines[end][0].isspace()):
                end += 1
            begin = at - 1 if at and _ERROR.search(lines[at - 1]) else at
            yield "\n".join(lines[begin : end + 1])
            at = end
        elif _ERROR.search(lines[at]) and _TRACEBACK not in " ".join(lines[at + 1 : at + 2]):
            yield lines[at]
        at += 1


def grouped(mistakes: Sequence[Error]) -> list[tuple[str, str]]:
    """Each text once, with who wrote it: numbers of ranks in it aside."""
    texts: dict[str, list[Error]] = {}
    for error in mistakes:
        texts.setdefault(re.sub(r"rank \d+", "rank", error.text), []).append(error)
    return [(_whose(errors), errors[0].text) for errors in texts.values()]


def tail(path: Path) -> str:
    """The text of a log, its oldest part left out where it is very long."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _OLDEST))
        text = file.read().decode(errors="replace")
    return text if size <= _OLDEST else text.partition("\n")[2]


def _whose(errors: Sequence[Error]) -> str:
    ranks = sorted({error.rank for error in errors if error.rank is not None})
    return in_words(ranks) if ranks else _name(None)


def _name(rank: int | None) -> str:
    return "job" if rank is None else f"rank {rank}"


def _ranks(found: dict[int | None, Path]) -> str:
    ranks = [rank for rank in found if rank is not None]
    return in_words(ranks) if ranks else "the job's own log alone"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
