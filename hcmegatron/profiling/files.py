"""A profile's files in a run directory: `profile/summary.json`, `rank-RRR.json`, `trace.json.gz`. No torch."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hcmegatron.profiling.rank_step import FORMAT, RankRecord, from_json

FOLDER = "profile"
SUMMARY, TRACE = "summary.json", "trace.json.gz"


def rank_file(rank: int) -> str:
    """Name of the record of a global rank."""
    return f"rank-{rank:03d}.json"


def kineto_file(rank: int) -> str:
    """Name of torch.profiler's own trace of a rank, whose distributedInfo says which it is."""
    return f"kineto/rank-{rank:03d}.json.gz"


def read_summary(run: Path) -> dict[str, Any] | None:
    """The figures of a run's profile (docs/profile.md); None where it has none.

    Args:
        run: its directory.

    Raises:
        ValueError: they are of another format, or damaged.
    """
    path = run / FOLDER / SUMMARY
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is of another format; this version reads {FORMAT}")
    return found


def read_records(run: Path, ranks: int | None = None) -> list[RankRecord]:
    """What every rank recorded, in order; none where nothing was profiled.

    Args:
        ranks: of the profile (its summary says), whose directory may have those of an earlier, larger one; None: all.

    Raises:
        ValueError: a file is of another format, or damaged.
    """
    found = []
    for path in sorted((run / FOLDER).glob("rank-*.json")):
        if ranks is not None and not _within(path, ranks):
            continue
        try:
            found.append(from_json(json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no record of a rank: {error}") from None
    return sorted(found, key=lambda record: record.rank)


def write(run: Path, name: str, content: dict[str, Any]) -> Path:
    """A file of the profile as JSON, whole or not at all; compressed, where its name says so."""
    path = run / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    text = json.dumps(content, allow_nan=False).encode()
    part.write_bytes(gzip.compress(text, 6, mtime=0) if path.suffix == ".gz" else text)
    os.replace(part, path)
    return path


def write_all(
    run: Path, records: Sequence[RankRecord], summary: dict[str, Any], trace: dict[str, Any]
) -> None:
    """All files of a profile; the summary, by which others know it, last. Those of ranks that an earlier profile had
    beyond these are removed."""
    for pattern in ("rank-*.json", "kineto/rank-*.json.gz"):
        for path in (run / FOLDER).glob(pattern):
            if not _within(path, len(records)):
                path.unlink()
    for record in records:
        write(run, rank_file(record.rank), record.as_json())
    write(run, TRACE, trace)
    write(run, SUMMARY, summary)


def _within(path: Path, ranks: int) -> bool:
    """Whether a file, rank-RRR.json or such, is of one of so many ranks, or of none."""
    number = path.name.partition(".")[0].removeprefix("rank-")
    return not (number.isascii() and number.isdigit()) or int(number) < ranks
