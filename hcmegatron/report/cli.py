"""The verb `report`: one HTML page that explains runs. No torch."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from hcmegatron.config import ConfigError
from schedules import output_files

NAME = "report.html"
PORT = 6007


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.usage = (
        "hcmegatron report RUN [RUN ...] [--compare] [--out FILE] [--no-files] | --serve RUN [--port N]"
    )
    parser.description = (
        "Write one HTML file that explains runs: how they ended, where they differ, curves, memory, schedule, "
        "diagnostics, overlap, events. It opens without a network. Beside it, in NAME-files, every figure is an SVG "
        "and a PNG file, with its numbers as CSV."
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a run directory, such as runs/NAME"
    )
    parser.add_argument(
        "--compare", action="store_true", help="draw the smoothed gap of the loss to the first run's"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"the page (default: {NAME} in the first run's directory)"
    )
    parser.add_argument("--no-files", action="store_true", help="only the page, no files for papers")
    parser.add_argument(
        "--serve", action="store_true", help="show the page on this machine, and follow the runs"
    )
    parser.add_argument("--port", metavar="N", help=f"with --serve (default: {PORT}; 0: any that is free)")


def main(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        ConfigError: a directory is no run's, options contradict each other, a package is missing, or a file cannot be
            written.
    """
    _check(options)
    from hcmegatron.report.inputs.run import directories

    found = directories(options.runs)
    plotly = _plotly()
    if options.serve:
        from hcmegatron.report.serve import serve

        return serve(found, options.compare, _port(options.port), plotly)
    if not options.no_files:
        _require("matplotlib", "; --no-files writes the page alone")
    from hcmegatron.report.assemble import sections, title
    from hcmegatron.report.page.html import content, page

    out = options.out or options.runs[0] / NAME
    runs = [directory.read() for directory in found]
    parts = sections(runs, options.compare)
    try:
        output_files.write([(out, page(title(runs), content(parts), plotly))])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(out)
    if not options.no_files:
        from hcmegatron.report.files import write

        folder = out.with_name(f"{out.stem}-files")  # runs/NAME.html is beside the run directory runs/NAME
        print(f"{folder}: {len(write(parts, folder))} files")
    return 0


def _check(options: argparse.Namespace) -> None:
    """What contradicts itself is found before anything is read."""
    if options.compare and len(options.runs) < 2:
        raise ConfigError("--compare: there is one run; name the ones to compare with it")
    if options.port is not None and not options.serve:
        raise ConfigError(f"--port = {options.port}: nothing listens without --serve; add it")
    if options.serve and (options.out or options.no_files):
        name = "--out" if options.out else "--no-files"
        raise ConfigError(f"{name}: --serve writes no files; leave one of the two out")
    if options.out is not None:
        if not options.out.suffix:
            raise ConfigError(
                f"--out = {options.out}: has no ending; name a file, such as {options.out}.html"
            )
        try:
            output_files.check([options.out])
        except ValueError as error:
            raise ConfigError(f"--out = {error}; name another file") from None


def _port(text: str | None) -> int:
    if text is None:
        return PORT
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigError(
            f"--port = {text}: is no port; use a number from 1 to 65535, or 0 for any that is free"
        )
    return int(text)


def _plotly() -> str:
    """The source of plotly.js, which the package brings along.

    Raises:
        ConfigError: it is not installed.
    """
    _require("plotly")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _require(name: str, otherwise: str = "") -> None:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"report needs the package {name}, which is not installed; pip install 'hcmegatron[report]'{otherwise}"
        )
