"""Checkpoints that are damaged in every way that a disk, a person or a full file system can, and what a run does then.

    python -m tests.training.faults [--cases 200] [--seed 0]

Each case copies a run of two ranks with checkpoints after steps 2 and 4, damages the newer one, and continues the run:
it has to say so, to set that one aside, to train from the other, and to come to the same bits as the run that nobody
damaged. The last cases fill the disk while the second checkpoint is written, each at another byte of it; the first has
to stay whole, and the run to say why it failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hcmegatron.training import manifest
from tests.ranks import observe_ranks, run_ranks
from tests.small_configs import tiny
from tests.training import checkpoint_workers, workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
RESUME = checkpoint_workers.resumed
OLD, NEW = "checkpoints/step-00000002", "checkpoints/step-00000004"
PLACES = (
    0.0,
    0.01,
    0.25,
    0.5,
    0.75,
    0.99,
    1.0,
)  # of a file's bytes: headers, contents, and directories at its end


def _flip(file: Path, at: int, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _zero(file: Path, at: int, draw: random.Random) -> None:
    """A sector that was never written; at least one byte of it was not zero."""
    content = bytearray(file.read_bytes())
    start = at // 512 * 512
    while not any(content[start : start + 512]):
        start += 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content)


def _truncate(file: Path, at: int, draw: random.Random) -> None:
    os.truncate(file, at)


def _grow(file: Path, at: int, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes() + bytes(1 + at % 4096))


def _remove(file: Path, at: int, draw: random.Random) -> None:
    file.unlink()


def _empty(file: Path, at: int, draw: random.Random) -> None:
    file.write_bytes(b"")


def _forbid(file: Path, at: int, draw: random.Random) -> None:
    file.chmod(0)


def _directory(file: Path, at: int, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _older(file: Path, at: int, draw: random.Random) -> None:
    """The same file of the checkpoint before: whole, of the same size, and of another step."""
    shutil.copy(file.parents[2] / OLD / file.name, file)


DAMAGES: dict[str, Callable[[Path, int, random.Random], None]] = {
    "flip": _flip,
    "zero": _zero,
    "truncate": _truncate,
    "grow": _grow,
    "remove": _remove,
    "empty": _empty,
    "forbid": _forbid,
    "directory": _directory,
    "older": _older,
}
ANYWHERE = ("flip", "zero", "truncate")  # those for which a place matters


class Case(NamedTuple):
    """A damage to a file of the newest checkpoint, at a place of it from 0 to 1."""

    file: str
    damage: str
    place: float
    seed: int


def cases(files: list[str], number: int, seed: int) -> list[Case]:
    """Every damage of every file and place, and then the same at places drawn at random."""
    once = [name for name in DAMAGES if name not in ANYWHERE]
    found = [Case(file, damage, 0.0, seed) for file, damage in itertools.product(files, once)]
    found += [Case(*each, seed) for each in itertools.product(files, ANYWHERE, PLACES)]
    draw = random.Random(seed)
    while len(found) < number:
        found.append(Case(draw.choice(files), draw.choice(ANYWHERE), draw.random(), draw.randrange(2**32)))
    return found[:number]


def inflict(case: Case, run: Path) -> None:
    """Damage a run's newest checkpoint."""
    file = run / NEW / case.file
    size = file.stat().st_size
    at = min(int(case.place * size), size - 1)
    DAMAGES[case.damage](file, at, random.Random(case.seed))


class Whole(NamedTuple):
    """A run that nobody damaged, and each rank's hash of its state after each save."""

    directory: Path
    hashes: list[dict[int, str]]


def undamaged(text: Path, directory: Path) -> Whole:
    """Train two ranks for four steps."""
    return Whole(directory, run_ranks(2, workers.run, tiny(text, directory), **RUN))


def judge(case: Case, whole: Whole, text: Path, directory: Path) -> str:
    """What went wrong with a case; "" where nothing did."""
    run = directory / "run"
    shutil.copytree(whole.directory, run)
    inflict(case, run)
    config = tiny(text, run, checkpoint={"resume": "auto"})
    outcomes = observe_ranks(2, RESUME, config, **RUN)
    if any(outcome.exit_code or outcome.overtime for outcome in outcomes):
        return f"ended with {outcomes[0].exit_code}: {(outcomes[0].error or outcomes[0].output)[-600:]}"
    said = (run / "train.log").read_text()
    if (
        f"WARNING: checkpoint {run / NEW} " not in said
        or "It is set aside as step-00000004.damaged" not in said
    ):
        return "nothing was said of the damage"
    if f"continuing from {run / OLD} after step 2, bit for bit" not in said:
        return "the run did not go on from the checkpoint before"
    if [outcome.result[4] for outcome in outcomes] != [hashes[4] for hashes in whole.hashes]:
        return "the run came to other bits"
    if not (run / f"{NEW}.damaged").is_dir():
        return "the damaged checkpoint is gone"
    manifest.verify(run / NEW, manifest.read(run / NEW))
    return ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`. Needs root; raises CalledProcessError where it is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def judge_full_disk(room: int, whole: Whole, text: Path, directory: Path) -> str:
    """What went wrong with a disk that has room for one checkpoint and this many bytes; "" where nothing did."""
    run = directory / "run"
    one = sum(-(-file.stat().st_size // 4096) * 4096 for file in (whole.directory / OLD).iterdir())
    with small_disk(run / "checkpoints", one + 4096 + room):
        config = tiny(text, run, checkpoint={"resume": "auto"})
        outcomes = observe_ranks(2, RESUME, config, **RUN)
        if any(outcome.overtime for outcome in outcomes):
            return "hung"
        line = (outcomes[0].error or "").strip().splitlines()[-1:]
        reason = "NotSaved: the checkpoint after step 4 could not be saved: No space left on device"
        if not line or reason not in line[0]:
            return f"ended with {outcomes[0].exit_code}: {line}"
        left = sorted(path.name for path in (run / "checkpoints").iterdir())
        if left != ["step-00000002"]:
            return f"left {left}"
        manifest.verify(run / OLD, manifest.read(run / OLD))
    return ""


def main(argv: list[str]) -> int:
    """Run the cases; 1 where any went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.faults")
    parser.add_argument("--cases", type=int, default=180)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        text = root / "text.txt"
        text.write_text("".join(f"line {n}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
        whole = undamaged(text, root / "whole")
        files = sorted(path.name for path in (whole.directory / NEW).iterdir())
        bytes_of_one = sum((whole.directory / NEW / file).stat().st_size for file in files)
        rooms = [bytes_of_one * number // max(1, asked.disks) for number in range(asked.disks)]
        every = [(str(case), case, judge) for case in cases(files, asked.cases, asked.seed)]
        every += [(f"room for {room} bytes", room, judge_full_disk) for room in rooms]
        for number, (name, case, by) in enumerate(every):
            found = by(case, whole, text, root / str(number))
            wrong += bool(found)
            print(f"{number + 1}/{len(every)} {name}: {found or 'found, and the fallback used'}", flush=True)
            shutil.rmtree(root / str(number))
    print(f"{len(every)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
