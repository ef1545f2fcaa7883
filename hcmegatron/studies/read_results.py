"""From a table's rows to results: which of its columns are axes, and which rows are of one place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hcmegatron.config import Config
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import flatten
from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.results import Arm, Place, Point, Results, rate_key
from hcmegatron.studies.table import Table

RATES = ("lr_times", "lr")
FLOPS = ("flops", "flops_planner", "flops_6nd")
BUDGETS = ("tokens_per_parameter", "flops_budget")  # of runs with as many tokens as their own size asks for
CLOSE = 1.1  # parameters of one size, where no column names sizes: connections add to them
SAME = 1.02  # tokens of one place: runs end with a whole step
_MEASURED = ("tokens", "steps", "seed", "kind", *RATES)  # which are settings' names too
_FIELDS = frozenset(field for kind in KINDS.values() for field in kind.fields)
_SETTINGS = frozenset(key.rpartition(".")[2] for key in flatten(Config())) - {*_MEASURED}
Values = tuple[tuple[str, str], ...]  # of axes, by name


def read_results(table: Table, baseline: str, flops: str | None = None, axes: Sequence[str] = ()) -> Results:
    """The results of a table.

    Args:
        baseline: the kind that gaps are to.
        flops: the column of C; None: the first of FLOPS that there is, or else 6 N D.
        axes: columns that tell runs apart, beside those of settings.

    Raises:
        ConfigError: a column that has to be there is not, or two rows are of one arm, place, seed and learning rate.
    """
    columns = tuple(map(str, table.rows[0]))
    own = [column for column in columns if _leaf(column) in _FIELDS - {*axes}]
    known = [column for column in columns if _leaf(column) in _SETTINGS - _FIELDS or column in BUDGETS]
    arms, others = _values(table, own), _values(table, [*dict.fromkeys([*axes, *known])])
    parameters, tokens = table.numbers("parameters"), table.numbers("tokens")
    compute, flops_column = _compute(table, flops, parameters, tokens)
    kinds, losses = table.words("kind"), table.numbers("loss")
    sizes = table.words("size") if "size" in columns else _near(parameters, CLOSE)
    seeds = table.words("seed") if "seed" in columns else [""] * len(kinds)
    runs = table.words("run") if "run" in columns else [f"row {row}" for row in range(2, len(kinds) + 2)]
    groups = table.words("group") if "group" in columns else runs
    rate = next((column for name in RATES for column in columns if _leaf(column) == name), None)
    rates, spikes = (
        table.numbers(column, positive=False) if column in columns else np.full(len(kinds), np.nan)
        for column in (rate, "spikes")
    )
    diverged = table.truths("diverged") if "diverged" in columns else [False] * len(kinds)
    kept = np.flatnonzero(np.isfinite(parameters) & np.isfinite(tokens)).tolist()
    if not kept:
        raise ConfigError(
            f"{table.path}: no row has parameters and tokens; collect the study once runs have begun"
        )
    places = _placed(
        sizes, others, [group or run for group, run in zip(groups, runs, strict=True)], tokens, kept
    )
    points = tuple(
        Point(
            runs[i],
            groups[i] or runs[i],
            Arm(kinds[i], arms[i]),
            places[i],
            seeds[i],
            *(float(column[i]) for column in (rates, parameters, tokens, compute, losses, spikes)),
            diverged[i],
        )
        for i in kept
    )
    _refuse_doubles(points, table.path)
    found = [point.arm for point in points if point.arm.kind == baseline]
    base = min(found, key=lambda arm: len(arm.settings), default=None)
    return Results(points, base, frozenset(columns), flops_column, len(kinds) - len(points))


def _values(table: Table, columns: Sequence[str]) -> list[Values]:
    """Of every row, those of the columns that it has."""
    words = {column: [_plain(word) for word in table.words(column)] for column in columns}
    return [
        tuple((_leaf(column), words[column][row]) for column in columns if words[column][row])
        for row in range(len(table.rows))
    ]


def _compute(
    table: Table, flops: str | None, parameters: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, str]:
    column = flops or next((name for name in FLOPS if name in table.rows[0]), None)
    return (6 * parameters * tokens, "6 N D") if column is None else (table.numbers(column), column)


def _placed(
    sizes: Sequence[str],
    others: Sequence[Values],
    groups: Sequence[str],
    tokens: np.ndarray,
    kept: Sequence[int],
) -> dict[int, Place]:
    """The place of every row. Tokens of one place are the same to a step; or, where runs have as many as their own size
    asks for, those of the same budget and the same point of the run."""
    nearly = _near(tokens, SAME)
    of_run: dict[str, set[float]] = defaultdict(set)
    for i in kept:
        of_run[groups[i]].add(float(tokens[i]))
    rows: dict[tuple[str, Values, object], list[int]] = defaultdict(list)
    for i in kept:
        budgeted = any(name in BUDGETS for name, _ in others[i])
        point = sorted(of_run[groups[i]]).index(float(tokens[i])) if budgeted else nearly[i]
        rows[sizes[i], others[i], point].append(i)
    return {
        i: Place(size, float(np.mean(tokens[own])), other)
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


def _leaf(column: str) -> str:
    return column.rpartition(".")[2]


def _plain(word: str) -> str:
    """One spelling for a value, whatever a file made of it: 4.0 is 4, True is true, None is nothing."""
    if word.lower() in ("true", "false"):
        return word.lower()
    if word.lower() in ("none", "nan"):
        return ""
    try:
        number = float(word)
    except ValueError:
        return word
    return str(int(number)) if number.is_integer() else repr(number)
