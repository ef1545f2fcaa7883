"""A table of runs, from CSV or Parquet: columns by name, as numbers or words, with one line for what is wrong."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.studies.laws import Array

UNIT = "loss_unit"  # a column
TRUTHS = {"true": True, "1": True, "false": False, "0": False, "": False}


class Table:
    """The columns of a file, every row a run or a point of one.

    Args:
        option: that named the file, for errors.

    Raises:
        ConfigError: it cannot be read, or has no rows.
    """

    def __init__(self, path: str, option: str = "--csv") -> None:
        self.path = path
        try:
            self.rows = _parquet(path, option) if Path(path).suffix == ".parquet" else _csv(path)
        except OSError as error:
            raise ConfigError(f"{option} {path}: {error.strerror or error}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{option} {path}: is no CSV file: {error}") from None
        if not self.rows:
            raise ConfigError(f"{option} {path}: has no rows")

    def words(self, column: str) -> list[str]:
        """A column as it is written.

        Raises:
            ConfigError: there is none.
        """
        if column not in self.rows[0]:
            raise ConfigError(
                f"{self.path} has no column {column}; it has {', '.join(map(str, self.rows[0]))}"
            )
        return ["" if row[column] is None else str(row[column]).strip() for row in self.rows]

    def numbers(self, column: str, positive: bool = True) -> Array:
        """A column of numbers, positive ones unless it is said; what is empty, nan or infinite is nan (a run that
        diverged).

        Raises:
            ConfigError: there is none, or it has something else in it.
        """
        found = []
        for line, word in enumerate(self.words(column), 2):
            try:
                number = float(word or "nan")
            except ValueError:
                raise ConfigError(f"{self.path}, row {line}: {column} = {word} is no number") from None
            if positive and number <= 0:
                raise ConfigError(
                    f"{self.path}, row {line}: {column} = {word}; a power law needs it positive"
                )
            found.append(number if math.isfinite(number) else math.nan)
        return np.array(found)

    def truths(self, column: str) -> list[bool]:
        """A column of true and false; what is empty is false.

        Raises:
            ConfigError: there is none, or it has something else in it.
        """
        found = []
        for line, word in enumerate(self.words(column), 2):
            if word.lower() not in TRUTHS:
                raise ConfigError(f"{self.path}, row {line}: {column} = {word} is neither true nor false")
            found.append(TRUTHS[word.lower()])
        return found

    def loss_unit(self) -> str:
        """Of the losses: nats a byte, as `study collect` writes it; nats where no column says of what.

        Raises:
            ConfigError: rows have different ones.
        """
        units = sorted(set(filter(None, self.words(UNIT)))) if UNIT in self.rows[0] else []
        if len(units) > 1:
            raise ConfigError(
                f"{self.path}: {UNIT} = {' and '.join(units)}, which do not compare; make a table of each"
            )
        return units[0] if units else "nats"


def _csv(path: str) -> list[dict[str, str | None]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream))


def _parquet(path: str, option: str) -> list[dict[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(f"{option} {path}: Parquet needs pyarrow; pip install 'hcmegatron[data]'") from None
    try:
        return parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ConfigError(f"{option} {path}: is no Parquet file: {error}") from None
