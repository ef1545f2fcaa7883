"""Several runs as one array of SLURM: each row has a run directory, and a batch script that would do alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch import record, slurm
from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started
from launch.queue import require_idle
from launch.quoting import quote, quote_all
from launch.template import fill

SCRIPT = f"{FOLDER}/array.sh"


def row_name(files: Sequence[Path], number: int) -> str:
    """The folder of a row: its configuration's name, with its number where several have that."""
    name = files[number].stem
    return name if [file.stem for file in files].count(name) == 1 else f"{name}-{number}"


def files(jobs: Sequence[Job], script: str = SCRIPT, numbers: Sequence[int] = ()) -> dict[str, str]:
    """The array's own script, by its path.

    Args:
        script: its name, in the directory that the run directories are in.
        numbers: of the rows; without any they are counted from 0.

    Raises:
        LaunchError: the jobs are chains, or their directories are not in one.
    """
    first = jobs[0]
    if odd := [job for job in jobs if job.run_dir.parent != first.run_dir.parent]:
        raise LaunchError(
            f"run.dir = {odd[0].run_dir}: rows of an array share one run.dir; give it once, as an option"
        )
    if first.chain:
        raise LaunchError(f"chain = {first.chain}: an array's rows are no chains; leave one of the two out")
    named = replace(first, name=first.name or replace(first, run_dir=first.run_dir.parent).title)
    listed, places = f"0-{len(jobs) - 1}", [""] * len(jobs)
    if numbers:
        listed, places = ",".join(map(str, numbers)), [f"[{number}]=" for number in numbers]
    log = "row" if script == SCRIPT else Path(script).stem
    header = [line for line in slurm.directives(named) if not line.startswith("--output")]
    values = {
        "directives": "\n".join(
            f"#SBATCH {line}" for line in (f"--array={listed}", f"--output={FOLDER}/{log}-%a.log", *header)
        ),
        "rows": "\n".join(
            f"    {place}{quote(str(job.run_dir))}" for place, job in zip(places, jobs, strict=True)
        ),
    }
    return {str(first.run_dir.parent / script): fill("array.sh", values)}


def start_command(first: Job, script: str = SCRIPT, after: Sequence[str] = ()) -> tuple[str, ...]:
    """sbatch, in the directory that the run directories are in. after: options more."""
    parent = first.run_dir.parent
    return ("sbatch", "--parsable", *after, f"--chdir={parent}", str(parent / script))


def launch(rows: Sequence[tuple[Job, dict[str, str]]], snapshot: bool, submit: bool) -> int:
    """Write every row's files and the array's; submit it where it is to be.

    Raises:
        LaunchError: files that cannot be written, or sbatch refuses.
    """
    jobs = [job for job, _ in rows]
    write(rows, snapshot)
    if not submit:
        print(f"written; --submit starts it, as does\n    {quote_all(start_command(jobs[0]))}")
        return 0
    start(jobs)
    return 0


def write(
    rows: Sequence[tuple[Job, dict[str, str]]],
    snapshot: bool,
    script: str = SCRIPT,
    numbers: Sequence[int] = (),
) -> None:
    """Write every row's files and the array's.

    Raises:
        LaunchError: they cannot be written, or a run is going on.
    """
    jobs = [job for job, _ in rows]
    own = files(jobs, script, numbers)
    for job in jobs:
        require_idle(job.run_dir)
    for job, texts in rows:
        record.write_files(job.run_dir, texts, snapshot)
    try:
        for path, text in own.items():
            Path(path).parent.mkdir(exist_ok=True)
            Path(path).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise LaunchError(
            f"{error.filename} cannot be written: {error.strerror}; choose another run.dir"
        ) from None


def start(
    jobs: Sequence[Job], script: str = SCRIPT, numbers: Sequence[int] = (), after: Sequence[str] = ()
) -> str:
    """Submit what `write` has written, and write down each row's number; the array's.

    Args:
        after: options of sbatch more, such as what it depends on.

    Raises:
        LaunchError: sbatch refuses.
    """
    command = start_command(jobs[0], script, after)
    number = slurm.submit(list(command))
    for row, job in zip(numbers or range(len(jobs)), jobs, strict=True):
        record.write(job, Started("slurm", (f"{number}_{row}",)), command)
        print(f"slurm job {number}_{row}: hcmegatron status {quote_all([str(job.run_dir)])}")
    return number
