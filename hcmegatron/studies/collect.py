"""A study's results as one tidy table: a row a point, which is the end of a run or of one of its branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config import Config, ConfigError, read_config
from hcmegatron.connections import accounting
from hcmegatron.report.inputs.json_lines import read_lines
from hcmegatron.studies import accounts, measures
from hcmegatron.studies.arms import columns_of
from hcmegatron.studies.directory import difference_of
from hcmegatron.studies.learnt import digest
from hcmegatron.studies.record import Entry, Record
from hcmegatron.studies.state import has_diverged, state_of

LOSS_UNIT = "nats a byte"  # of evaluations
Row = dict[str, Any]


class Collected(NamedTuple):
    """A study's table.

    Attributes:
        missing: points without a result yet, with the state of each.
    """

    rows: list[Row]
    missing: dict[str, str]


def collect(record: Record) -> Collected:
    """The rows of all points that have a result: those that diverged too, without a loss.

    Raises:
        ConfigError: a run directory is of another configuration, or a configuration was changed.
    """
    states = {
        entry.name: state_of(record.run_dir(entry.name), entry.steps, entry.evaluation)
        for entry in record.entries
    }
    diverged = {entry.name: has_diverged(entry, states) for entry in record.entries}
    missing = {
        name: state.name for name, state in states.items() if not diverged[name] and state.name != "finished"
    }
    kept = [entry for entry in record.entries if entry.name not in missing]
    configs = {entry.name: configured(record, entry) for entry in kept}
    settings = columns_of(configs.values())
    lines: dict[str, list[dict[str, Any]]] = {}
    rows = []
    for entry in kept:
        for name in filter(None, (entry.trunk, entry.name)):
            if name not in lines:
                lines[name] = read_lines(record.run_dir(name) / "metrics.jsonl")
        path = measures.path_of(lines[entry.trunk], entry.at_step, lines[entry.name]) if entry.trunk else None
        steps = lines[entry.name] if path is None else path
        rows.append(_row(record, entry, configs[entry.name], settings, steps, diverged[entry.name]))
    return Collected(_same_columns(rows), missing)


def configured(record: Record, entry: Entry) -> Config:
    """The configuration of a run.

    Raises:
        ConfigError: its file was changed, or its run directory is of another one.
    """
    file = record.config_file(entry.name)
    config = read_config(file)[0]
    if digest(config) != entry.digest:
        raise ConfigError(
            f"{file}: was changed since the study wrote it; change the study's file, and run the study again"
        )
    if what := difference_of(record.run_dir(entry.name), config):
        raise ConfigError(
            f"{record.run_dir(entry.name)}: is a run of another configuration: {what}; move it away, and run the study "
            "again"
        )
    return config


def _row(
    record: Record,
    entry: Entry,
    config: Config,
    settings: Sequence[str],
    entries: list[dict[str, Any]],
    diverged: bool,
) -> Row:
    nothing = {"loss": math.nan}
    held = nothing if diverged else measures.evaluated(entries, "validation", entry.steps) or nothing
    tested = {} if diverged else measures.evaluated(entries, "test", entry.steps)
    connection = config.connection
    idle = accounting.ineffective_fields(connection)
    return {
        "run": entry.name,
        "study": record.study,
        "group": entry.trunk or entry.name,
        "point": entry.branch or "final",
        "kind": connection.kind,
        "label": entry.axes.get("kind", connection.kind),
        "n": 1 if "n" in idle else connection.n,
        **{name: None if name in idle else getattr(connection, name) for name in settings if name != "n"},
        **{name: value for name, value in entry.axes.items() if name not in ("kind", "n", "tokens", "lr")},
        "lr": config.optimizer.lr,
        "tokens": entry.tokens,
        "steps": entry.steps,
        **accounts.parameters(config),
        **accounts.flops(config, entry.tokens),
        **held,
        "loss_unit": LOSS_UNIT,
        **{f"test_{name}": value for name, value in tested.items()},
        "diverged": diverged,
        **measures.of_training(entries),
    }


def _same_columns(rows: list[Row]) -> list[Row]:
    """All rows with every column that one has, in the order in which they come."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in columns} for row in rows]


def write_table(rows: list[Row], folder: Path) -> list[Path]:
    """table.csv and table.parquet; what is no number is empty there.

    Raises:
        ConfigError: pyarrow is not installed, or a file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise ConfigError("study collect needs pyarrow; pip install 'hcmegatron[data]'") from None
    plain = [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    columns = {name: [row[name] for row in plain] for name in plain[0]}
    table = pyarrow.table({name: _array(pyarrow, values) for name, values in columns.items()})
    written = []
    for name, write in (("table.parquet", parquet.write_table), ("table.csv", csv.write_csv)):
        file, part = folder / name, folder / f".{name}.part"
        try:
            write(table, str(part))
            part.replace(file)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from None
        written.append(file)
    return written


def _array(pyarrow: Any, values: list[Any]) -> Any:
    """A column; words where its values are of several types, and numbers where none has one."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pyarrow.array(values, pyarrow.float64())
    if kinds == {int, float}:
        return pyarrow.array([None if value is None else float(value) for value in values])
    if len(kinds) > 1:
        return pyarrow.array([None if value is None else str(value) for value in values])
    return pyarrow.array(values)
