"""hcmegatron study report: the figures and tables that papers print, from a study's collected table."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.studies.record import FILE, read_record
from schedules import output_files

TABLES = ("table.parquet", "table.csv")  # as `study collect` writes them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.usage = "hcmegatron study report DIR | --table FILE [--out DIR] [--baseline KIND] [--level L]"
    parser.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", help="of a study that was collected"
    )
    parser.add_argument("--table", metavar="FILE", type=Path, help="a table alone, CSV or .parquet")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="default: DIR/report, or NAME-report beside the table"
    )
    parser.add_argument(
        "--baseline", metavar="KIND", help="what gaps are to (default: the study's, or residual)"
    )
    parser.add_argument("--flops", metavar="COLUMN", help="compute (default: the first there is, or 6 N D)")
    parser.add_argument(
        "--axis", metavar="COLUMN", action="append", default=[], help="a column that tells runs apart"
    )
    parser.add_argument("--level", type=float, default=0.9, help="of all intervals (default: 0.9)")
    parser.add_argument("--bootstraps", type=int, default=200, help="of fits (default: 200)")


def main(options: argparse.Namespace) -> int:
    """The verb; returns its exit status.

    Raises:
        ConfigError: a mistake of the user's.
    """
    path = _check(options)
    for name, extra in (("matplotlib", "report"), ("scipy", "studies")):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"study report needs {name}, which is not installed; pip install 'hcmegatron[{extra}]'"
            )
    from hcmegatron.studies.figures.draw import write
    from hcmegatron.studies.figures.plot import Plot
    from hcmegatron.studies.read_results import read_results
    from hcmegatron.studies.report import study_sections
    from hcmegatron.studies.report_page import study_page, tables
    from hcmegatron.studies.table import Table

    table = Table(str(path), "--table" if options.table else "study report")
    baseline = options.baseline or _baseline(options.directory) or "residual"
    results = read_results(table, baseline, options.flops, options.axis)
    sections = study_sections(results, options.directory, options.level, options.bootstraps)
    out = options.out or (
        path.with_name(f"{path.stem}-report") if options.table else options.directory / "report"
    )
    plots = [part for section in sections for part in section.parts if isinstance(part, Plot)]
    drawn = write(plots, out / "figures")
    texts = tables(sections)
    try:
        (out / "tables").mkdir(exist_ok=True)
        title = f"Study {(path.parent.resolve() if options.directory else path.resolve()).stem}"
        page = study_page(title, sections, drawn)
        output_files.write(
            [(out / "report.html", page), *((out / "tables" / name, text) for name, text in texts.items())]
        )
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
    print(out / "report.html")
    print(
        f"{out / 'figures'}: {len(plots)} figures as SVG, PNG and CSV; {out / 'tables'}: {len(texts)} tables as CSV"
    )
    return 0


def _baseline(directory: Path | None) -> str | None:
    """That the study in a directory names; None where it names none, or there is a table alone."""
    if directory is None or not (directory / FILE).exists():
        return None
    return read_record(directory).baseline


def _check(options: argparse.Namespace) -> Path:
    """The table's file. What contradicts itself is found before anything is read."""
    if (options.directory is None) == (options.table is None):
        given = "both are given" if options.table else "neither is given"
        raise ConfigError(f"study report takes a study's directory or --table FILE: {given}; name one")
    if not 0 < options.level < 1:
        raise ConfigError(f"--level = {options.level}; it has to be between 0 and 1")
    if options.bootstraps < 20:
        raise ConfigError(f"--bootstraps = {options.bootstraps}; it has to be at least 20")
    if options.table is not None:
        return options.table
    if not options.directory.is_dir():
        raise ConfigError(
            f"{options.directory}: there is no such directory; name a study's, such as runs/studies/NAME"
        )
    found = next((options.directory / name for name in TABLES if (options.directory / name).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{options.directory}: has neither {' nor '.join(TABLES)}; collect the study: hcmegatron study collect"
        )
    return found
