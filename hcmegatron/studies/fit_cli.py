"""hcmegatron study fit: laws of the loss, fitted to any table of runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.standard_streams import tell
from hcmegatron.studies.isoflop import growth, profiles
from hcmegatron.studies.laws import Array, compute_law, loss_law
from hcmegatron.studies.table import Table

FEWEST = 5  # runs of a kind that a law of its own takes more than: it has as many numbers
EXAMPLE = """\
examples:
  hcmegatron study fit --csv runs.csv                                  columns parameters, tokens, loss
  hcmegatron study fit --csv runs.csv --kind kind --baseline residual  and how much compute each connection saves
  hcmegatron study fit --csv chinchilla.csv --parameters 'Model Size' --flops 'Training FLOP' --drop-highest 5
"""


def add_arguments(fit: argparse.ArgumentParser) -> None:
    """What `hcmegatron study fit` takes."""
    fit.formatter_class = argparse.RawDescriptionHelpFormatter
    fit.epilog = EXAMPLE
    fit.add_argument("--csv", required=True, metavar="FILE", help="a table of runs, CSV or .parquet")
    fit.add_argument("--parameters", default="parameters", metavar="COLUMN", help="N")
    fit.add_argument("--tokens", metavar="COLUMN", help="D (default: tokens)")
    fit.add_argument("--flops", metavar="COLUMN", help="C, from which D = C / 6N, in place of tokens")
    fit.add_argument("--loss", default="loss", metavar="COLUMN", help="nats")
    fit.add_argument("--kind", metavar="COLUMN", help="of the connection: a law and a multiplier for each")
    fit.add_argument("--baseline", help="the kind whose multiplier is 1 (default: residual)")
    fit.add_argument("--group", metavar="COLUMN", help="rows that are drawn together: points of one run")
    fit.add_argument("--drop-highest", type=int, default=0, metavar="K", help="losses left out")
    fit.add_argument("--bootstraps", type=int, default=1000, help="default: 1000")
    fit.add_argument("--level", type=float, default=0.9, help="of the intervals (default: 0.9)")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--plot", metavar="DIR", type=Path, help="residuals and iso-FLOP profiles as SVG, PNG and CSV"
    )
    fit.add_argument("--json", action="store_true")


def main(options: argparse.Namespace) -> int:
    """The verb; returns its exit status.

    Raises:
        ConfigError: a mistake of the user's.
    """
    _refuse(options)
    table = Table(options.csv)
    losses, parameters = table.numbers(options.loss), table.numbers(options.parameters)
    if options.flops:
        compute = table.numbers(options.flops)
        tokens = compute / (6 * parameters)
    else:
        tokens = table.numbers(options.tokens or "tokens")
        compute = 6 * parameters * tokens
    known = np.isfinite(losses) & np.isfinite(parameters) & np.isfinite(compute)
    kept = np.flatnonzero(known)
    count = max(0, len(kept) - options.drop_highest)
    kept = np.sort(kept[np.argsort(losses[kept], kind="stable")][:count])
    if not len(kept):
        raise ConfigError(f"{options.csv}: no run is left that has every number; add runs")
    groups = np.array(table.words(options.group))[kept] if options.group else None
    kinds = np.array(table.words(options.kind))[kept] if options.kind else None
    report: dict[str, Any] = {
        "rows": len(losses),
        "without a number": int((~known).sum()),
        "highest losses dropped": options.drop_highest,
        "level": options.level,
    }
    try:
        found, residuals = _fits(
            parameters[kept], tokens[kept], compute[kept], losses[kept], groups, kinds, options
        )
    except ImportError:
        raise ConfigError("study fit needs scipy; pip install 'hcmegatron[studies]'") from None
    except ValueError as error:
        raise ConfigError(f"{options.csv}: {error}") from None
    report |= found
    if options.plot:
        unit = table.loss_unit() if options.loss == "loss" else "nats"
        _plot(options, residuals, compute[kept], parameters[kept], losses[kept], kinds, unit)
    print(json.dumps(report, indent=1) if options.json else "\n".join(_told(report)))
    return 0


def _refuse(options: argparse.Namespace) -> None:
    if options.flops and options.tokens:
        raise ConfigError(
            f"--tokens {options.tokens}: D follows from --flops and --parameters; give one of the two"
        )
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed; pip install 'hcmegatron[report]'")
    if options.baseline and not options.kind:
        raise ConfigError(
            f"--baseline {options.baseline}: is of a connection's kinds; name their column by --kind"
        )
    for name, wrong, allowed in (
        ("drop-highest", options.drop_highest < 0, "at least 0"),
        ("bootstraps", options.bootstraps < 20, "at least 20"),
        ("level", not 0 < options.level < 1, "between 0 and 1"),
        ("seed", options.seed < 0, "at least 0"),
    ):
        if wrong:
            raise ConfigError(
                f"--{name} = {getattr(options, name.replace('-', '_'))}; it has to be {allowed}"
            )


def _fits(
    parameters: Array,
    tokens: Array,
    compute: Array,
    losses: Array,
    groups: Array | None,
    kinds: Array | None,
    options: argparse.Namespace,
) -> tuple[dict[str, Any], list[Any]]:
    """What is reported, and the residuals of every law, for a figure."""
    from hcmegatron.studies.figures.law_figures import Residuals, residuals_of
    from hcmegatron.studies.fit import fit_law

    residuals: list[Residuals] = []

    def fitted(law_of: Any, *columns: Array, of: Array, name: str) -> dict[str, Any]:
        own = None if groups is None else groups[of]
        fit = fit_law(law_of(*columns), losses[of], options.bootstraps, options.seed, own)
        intervals = fit.interval(options.level)
        residuals.append(residuals_of(name, parameters[of], tokens[of], fit))
        found: dict[str, Any] = {
            "runs": len(losses[of]),
            "values": dict(zip(fit.law.names, fit.values.tolist(), strict=True)),
            "intervals": dict(zip(fit.law.names, intervals.tolist(), strict=True)),
            "largest residual": float(np.abs(fit.residuals).max()),
            "median residual": float(np.median(np.abs(fit.residuals))),
            "not identified": fit.unidentified(options.level),
        }
        if fit.law.names[3:] == ("alpha", "beta"):
            shares = [row[4] / (row[3] + row[4]) for row in (fit.values, *fit.draws)]
            edge = (1 - options.level) / 2
            found["values"]["a"] = shares[0]
            found["intervals"]["a"] = np.quantile(shares[1:], [edge, 1 - edge]).tolist()
        return found

    everything = np.arange(len(losses))
    laws: dict[str, Any] = {}
    few: dict[str, int] = {}
    if kinds is None:
        laws["all runs"] = fitted(loss_law, parameters, tokens, of=everything, name="all runs")
    else:
        for kind in np.unique(kinds):
            of = np.flatnonzero(kinds == kind)
            if len(of) > FEWEST:
                laws[str(kind)] = fitted(loss_law, parameters[of], tokens[of], of=of, name=str(kind))
            else:
                few[str(kind)] = len(of)
    report: dict[str, Any] = {"L = E + A/N^alpha + B/D^beta; N* grows as C^a": laws}
    if few:
        report["kinds without a law of their own, with their runs"] = few
    if kinds is not None:
        report["L = E + K/(m C)^gamma"] = fitted(
            lambda c: compute_law(c, kinds.tolist(), options.baseline or "residual"),
            compute,
            of=everything,
            name="L = E + K/(m C)^gamma",
        )
    elif budgets := profiles(compute, parameters, losses):
        grown = growth(budgets)
        report["iso-FLOP"] = {
            "profiles": [profile._asdict() for profile in budgets],
            "N* grows as C^": None if grown is None else grown[0],
        }
    return report, residuals


def _plot(
    options: argparse.Namespace,
    residuals: list[Any],
    compute: Array,
    parameters: Array,
    losses: Array,
    kinds: NDArray[np.str_] | None,
    unit: str,
) -> None:
    from hcmegatron.studies.figures.draw import write
    from hcmegatron.studies.figures.fit_figures import fit_plots

    plots = fit_plots(residuals, compute, parameters, losses, kinds, unit)
    write(plots, options.plot, "--plot")
    said = ", ".join(plot.name for plot in plots)
    tell(f"{options.plot}: {said} as SVG, PNG and CSV")


def _told(report: dict[str, Any]) -> list[str]:
    """The report as lines."""
    lines = [
        f"{report['rows']} rows, {report['without a number']} of them without a number, "
        f"{report['highest losses dropped']} highest losses dropped"
    ]
    for title, part in report.items():
        if title.startswith("L ="):
            several = part if "values" not in part else {"": part}
            lines += ["", f"{title}   ({report['level']:.0%} intervals)"]
            for name, fit in several.items():
                lines += _law_lines(name, fit)
        elif title.startswith("kinds without"):
            lines += [
                f"  {kind}: no law of its own, which takes more than {FEWEST} runs; it has {runs}"
                for kind, runs in part.items()
            ]
        elif title == "iso-FLOP":
            lines += ["", "iso-FLOP profiles: compute, runs, N of least loss, loss"]
            for profile in part["profiles"]:
                least = "not within its sizes"
                if profile["parameters"] is not None:
                    least = f"{profile['parameters']:.4g}  {profile['loss']:.4f}"
                lines.append(f"  {profile['compute']:.3g}  {profile['runs']}  {least}")
            exponent = part["N* grows as C^"]
            grows = "two budgets with a least loss or more say how N* grows; there are fewer"
            lines.append(f"  {grows}" if exponent is None else f"  N* grows as C^{exponent}")
    return lines


def _law_lines(name: str, fit: dict[str, Any]) -> list[str]:
    lines = [f"  {name or 'all kinds'}: {fit['runs']} runs"]
    for number, value in fit["values"].items():
        low, high = fit["intervals"][number]
        lines.append(f"    {number:12s} {value:12.5g}   {low:.5g} to {high:.5g}")
    lines.append(
        f"    residuals of log L: median {fit['median residual']:.2g}, largest {fit['largest residual']:.2g}"
    )
    if fit["not identified"]:
        lines.append(
            f"    warning: these runs do not fix {', '.join(fit['not identified'])}: intervals span more than a factor "
            "of ten; vary N and D apart, over more than a factor of ten each"
        )
    return lines
