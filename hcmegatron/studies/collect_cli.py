"""hcmegatron study collect: the results of a study as a table."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from hcmegatron.config import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.studies.collect import collect, write_table
from hcmegatron.studies.record import FILE, Record, read_record
from hcmegatron.studies.spec import read_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study collect` takes."""
    parser.description = (
        "Write table.csv and table.parquet into a study's directory: a row for every run and branch that has a result, "
        "those that diverged without a loss. `hcmegatron study fit --csv` takes them."
    )
    add_study(parser)


def add_study(parser: argparse.ArgumentParser) -> None:
    """The study that a verb looks at."""
    parser.add_argument(
        "study", metavar="STUDY", type=Path, help="the study's directory, its file, or a packaged one's name"
    )
    parser.set_defaults(more=[])


def main(options: argparse.Namespace) -> int:
    """The verb; 1 where results are missing.

    Raises:
        ConfigError: no study has begun there, or no run has a result.
    """
    record = recorded(options.study, options.more)
    rows, missing = collect(record)
    if not rows:
        raise ConfigError(
            f"{record.path}: no run has a result yet; see hcmegatron study status {record.path}"
        )
    files = write_table(rows, record.path)
    diverged = sum(row["diverged"] for row in rows)
    print(f"{len(rows)} rows, {diverged} of them diverged: {', '.join(map(str, files))}")
    if missing:
        counts = ", ".join(f"{number} {state}" for state, number in Counter(missing.values()).items())
        standard_streams.tell(f"hcmegatron: {len(missing)} points have no result: {counts}")
    return int(bool(missing))


def recorded(study: Path, words: list[str]) -> Record:
    """The record of a study that has begun: of its directory, or the one that its file names.

    Raises:
        ConfigError: there is none.
    """
    if (study / FILE).exists() or study.is_dir():
        if words:
            raise ConfigError(f"{words[0]}: {study} is a directory, which is one study; leave it out")
        return read_record(study)
    return read_record(read_study(study, words).run_dir)
