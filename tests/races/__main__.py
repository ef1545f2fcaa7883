"""The table of variants and controls: `python -m tests.races --minutes 20 --out bench_out/races`.

Results go, one JSON line each, to results.jsonl in --out, and as a table to races.md there; what is there already is
skipped, so that a run goes on where the one before ended. The exit code is 1 where a variant has a finding, or hangs
with as many hardware queues as a run asks for, or where a control is found in none of its variants.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.races.controls import IN_PROCESS, controls
from tests.races.judge import judged
from tests.races.report import Result, append, read, table, totals
from tests.races.variants import variants


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.races",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="print the names of what would run")
    parser.add_argument(
        "--only", metavar="NAME", help="variants and sites whose name has this in it; again, if there already"
    )
    parser.add_argument("--controls", action="store_true", help="no variants, only controls")
    parser.add_argument("--minutes", type=float, default=20, help="begin nothing after that many; default 20")
    parser.add_argument("--out", type=Path, default=Path("bench_out/races"), help="default bench_out/races")
    options = parser.parse_args(arguments)
    if not options.minutes >= 0:
        parser.error(f"--minutes {options.minutes:g}: 0 or more")
    everything = _everything()
    wanted = [each for each in everything if each[1]] if options.controls else everything
    if options.only:
        wanted = [each for each in wanted if options.only in each[0] or options.only in (each[1] or "")]
        if not wanted:
            parser.error(f"--only {options.only}: no variant or control has that in its name; see --list")
    if options.list:
        for variant, without in wanted:
            print(variant + (f" without {without}" if without else ""))
        return 0
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    return _run(wanted, options)


def _everything() -> list[tuple[str, str | None]]:
    """(variant, site that is taken away), the controls first."""
    return [*controls(), (IN_PROCESS, None), *((name, None) for name in variants())]


def _run(wanted: list[tuple[str, str | None]], options: argparse.Namespace) -> int:
    file = options.out / "results.jsonl"
    there = set() if options.only else {result.key for result in read(file)}
    left = [key for key in wanted if key not in there]
    deadline = time.monotonic() + 60 * options.minutes
    while left and time.monotonic() < deadline:
        result = judged(*left.pop(0))
        append(file, result)
        _print(result)
    current = set(_everything())
    results = [result for result in read(file) if result.key in current]
    (options.out / "races.md").write_text(table(results))
    found = totals(results)
    print(f"{found.words()}; {len(left)} left to run; {file}")
    for site in sorted(found.unmissed):
        print(f"not found in any variant that ran: without {site}")
    wrong = any(result.unexpected for result in results) or (found.unmissed and not left)
    return 1 if wrong else 0


def _print(result: Result) -> None:
    print(result.words(), flush=True)
    if result.error:
        print("    " + "\n    ".join(result.error.splitlines()[-30:]), flush=True)
    shown = list(result.findings)[: 2 if result.without else 5]
    if result.unexpected:
        shown += [words for held in list(result.hangs.values())[:1] for words in held]
    for words in shown:
        print(f"    {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
