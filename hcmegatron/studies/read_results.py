"""From a table's rows to results: which of its columns are axes, and which rows are of one place."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from hcmegatron.config import Config
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import flatten
from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.arms import Arm, arm_of, word
from hcmegatron.studies.results import Place, Point, Results, rate_key
from hcmegatron.studies.table import Table

RATES = ("lr_times", "lr", "optimizer.lr")
OTHER_RATES = ("muon.lr",)  # of part of the network: an axis like others
FLOPS = ("flops_planner", "flops_6nd", "flops")
BUDGETS = ("tokens_per_parameter", "flops")  # of runs with as many tokens as their own size asks for
ONE_SIZE = "base"  # of a collected table without that axis; all axes are columns there
CLOSE = 1.1  # parameters of one size, where no column names sizes: connections add to them
SAME = 1.02  # tokens of one place: runs end with a whole step
_MEASURED = ("tokens", "steps", "seed", "kind", *RATES)  # which are settings' names too
_FIELDS = frozenset(field for kind in KINDS.values() for field in kind.fields)
_SETTINGS = frozenset(key.rpartition(".")[2] for key in flatten(Config())) - {*_MEASURED} - _FIELDS
Values = tuple[tuple[str, str], ...]  # of axes, by name


def read_results(
    table: Table,
    baseline: str,
    flops: str | None = None,
    axes: Sequence[str] = (),
) -> Results:
    """The results of a table.

    Args:
        baseline: the kind that gaps are to.
        flops: the column of C; None: the first of FLOPS that there is, or else 6 N D.
        axes: columns that tell runs apart, beside those of settings.

    Raises:
        ConfigError: a column that has to be there is not, or two rows are of one arm, place, seed and learning rate, or
            losses have different units.
    """
    columns = tuple(
        str(column) for column in table.rows[0] if "/" not in str(column)
    )  # loss/SOURCE is no setting
    compute, flops_column = _compute(table, flops)
    further = {*BUDGETS, *OTHER_RATES}
    named = [*axes, *(name for name in columns if _leaf(name) in _SETTINGS or name in further)]
    others = _values(table, [name for name in dict.fromkeys(named) if name != flops_column])
    own = _values(table, [name for name in columns if _leaf(name) in _FIELDS and name not in axes])
    count = len(table.rows)
    rate = next((name for name in RATES if name in columns), "lr")

    def words(column: str, otherwise: Sequence[str]) -> Sequence[str]:
        return table.words(column) if column in columns else otherwise

    def numbers(column: str) -> np.ndarray:
        return table.numbers(column, positive=False) if column in columns else np.full(count, np.nan)

    kinds, parameters, tokens = table.words("kind"), table.numbers("parameters"), table.numbers("tokens")
    runs = words("run", [f"row {row}" for row in range(2, count + 2)])
    groups = [group or run for group, run in zip(words("group", runs), runs, strict=True)]
    alike = [ONE_SIZE] * count if "point" in columns else _near(parameters, CLOSE)
    sizes, seeds = words("size", alike), words("seed", [""] * count)
    diverged = table.truths("diverged") if "diverged" in columns else [False] * count
    figures = numbers(rate), parameters, tokens, compute, table.numbers("loss"), numbers("spikes")
    kept = np.flatnonzero(np.isfinite(parameters) & np.isfinite(tokens)).tolist()
    if not kept:
        raise ConfigError(
            f"{table.path}: no row has parameters and tokens; collect the study once runs have begun"
        )
    places = _placed(sizes, others, groups, words("point", [""] * count), tokens, kept)
    labels = words("label", [""] * count)
    points = tuple(
        Point(
            runs[i],
            groups[i],
            arm_of(kinds[i], labels[i], dict(own[i])),
            places[i],
            seeds[i],
            *(float(column[i]) for column in figures),
            diverged[i],
        )
        for i in kept
    )
    _refuse_doubles(points, table.path)
    first, left_out = _baseline(points, baseline), count - len(points)
    return Results(points, first, frozenset(columns), flops_column, table.loss_unit(), left_out)


def _baseline(points: Sequence[Point], name: str) -> Arm | None:
    """The arm of that label, or else of that kind; of several the one with the most points."""
    for attribute in ("label", "kind"):
        found = Counter(point.arm for point in points if getattr(point.arm, attribute) == name)
        if found:
            return found.most_common(1)[0][0]
    return None


def _values(table: Table, columns: Sequence[str]) -> list[Values]:
    """Of every row, those of the columns that it has."""
    words = {column: [word(value) for value in table.words(column)] for column in columns}
    return [
        tuple((_named(column), words[column][row]) for column in columns if words[column][row])
        for row in range(len(table.rows))
    ]


def _compute(table: Table, flops: str | None) -> tuple[np.ndarray, str]:
    column = flops or next((name for name in FLOPS if name in table.rows[0]), None)
    if column is None:
        return 6 * table.numbers("parameters") * table.numbers("tokens"), "6 N D"
    return table.numbers(column), column


def _placed(
    sizes: Sequence[str],
    others: Sequence[Values],
    groups: Sequence[str],
    named: Sequence[str],
    tokens: np.ndarray,
    kept: Sequence[int],
) -> dict[int, Place]:
    """The place of every row. Tokens of one place are the same to a step; or, where runs have as many as their own size
    asks for, those of the same budget and the same point of the run: as the table names it, or else the how manieth of
    its rows. What no rows differ in is in no place."""
    values = [dict(others[i]) for i in kept]
    names = dict.fromkeys(name for own in values for name in own)
    differs = {name for name in names if len({own.get(name) for own in values}) > 1}
    nearly = _near(tokens, SAME)
    of_run: dict[str, set[float]] = defaultdict(set)
    for i in kept:
        of_run[groups[i]].add(float(tokens[i]))
    rows: dict[tuple[str, Values, object], list[int]] = defaultdict(list)
    for i in kept:
        budgeted = any(name in BUDGETS for name, _ in others[i])
        point: object = nearly[i]
        if budgeted:
            point = named[i] or sorted(of_run[groups[i]]).index(float(tokens[i]))
        rows[sizes[i], others[i], point].append(i)
    return {
        i: Place(size, float(np.mean(tokens[own])), tuple(pair for pair in other if pair[0] in differs))
        for (size, other, _), own in rows.items()
        for i in own
    }


def _refuse_doubles(points: Sequence[Point], path: str) -> None:
    seen: dict[object, str] = {}
    for point in points:
        key = point.arm, point.place, point.seed, rate_key(point.rate)
        if key in seen:
            raise ConfigError(
                f"{path}: {seen[key]} and {point.run} have the same kind, settings, size, tokens, seed and learning "
                "rate; name the column in which they differ by --axis, or leave one out"
            )
        seen[key] = point.run


def _near(values: np.ndarray, factor: float) -> list[str]:
    """A name for every value: those within the factor of the next smaller one share theirs."""
    names = [""] * len(values)
    first = last = math.nan
    for row in np.argsort(values, kind="stable"):
        if not values[row] < factor * last:
            first = values[row]
        last = values[row]
        names[row] = f"{first:.4g}"
    return names


def _named(column: str) -> str:
    return column if column in OTHER_RATES else _leaf(column)


def _leaf(column: str) -> str:
    return column.rpartition(".")[2]
