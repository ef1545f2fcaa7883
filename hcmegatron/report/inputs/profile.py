"""A run's profile, as hcmegatron/profiling/files.py reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.profiling.files import FOLDER, SUMMARY, read_records, read_summary
from hcmegatron.profiling.rank_step import RankRecord
from hcmegatron.report.inputs.json_lines import or_remark, stamp


class Profile(NamedTuple):
    """What a run directory has in profile/, and what could not be read of it: remarks, one line each."""

    summary: Mapping[str, Any] | None
    records: tuple[RankRecord, ...]
    remarks: tuple[str, ...]


class ProfileFiles:
    """Read once as long as they are the same: the records may be large."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._seen: object = None
        self._found = Profile(None, (), ())

    def look(self) -> Profile:
        """The profile as it is now."""
        seen = stamp(self.run / FOLDER), stamp(self.run / FOLDER / SUMMARY)
        if seen != self._seen:
            remarks: list[str] = []
            summary = or_remark(self.run, partial(read_summary, self.run), remarks)
            ranks, records = (summary or {}).get("ranks"), None
            if type(ranks) is int:
                records = or_remark(self.run, partial(read_records, self.run, ranks), remarks)
            self._seen, self._found = seen, Profile(summary, tuple(records or ()), tuple(remarks))
        return self._found
