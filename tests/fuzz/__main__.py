"""The fuzz by hand: `python -m tests.fuzz --seeds 0:200 --minutes 20`, or `--case ...` to repeat what it printed.

Results go, one JSON line a case, to results.jsonl in --out; seeds that are there already are skipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import Case, of_seed
from tests.fuzz.judge import Verdict, judge
from tests.fuzz.shrink import shrunk


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 where a case failed."""
    split = arguments.index("--case") if "--case" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--seeds", default="0:200", metavar="FROM:TO", help="cases, without TO; default 0:200"
    )
    parser.add_argument("--minutes", type=float, default=20, help="begin no case after that many; default 20")
    parser.add_argument("--out", type=Path, default=Path("bench_out/fuzz"), help="default bench_out/fuzz")
    parser.add_argument("--shrink", action="store_true", help="look for the fewest settings that still fail")
    parser.add_argument("--again", action="store_true", help="those of the seeds that failed before")
    parser.add_argument(
        "--case", nargs=argparse.REMAINDER, help="one case as printed, to the end of the line"
    )
    options = parser.parse_args(arguments[:split])
    if split < len(arguments):
        return _repeat(Case.parse(arguments[split + 1 :]), options.shrink)
    return _soak(options)


def _soak(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    before = {line["seed"]: line["result"] for line in lines}
    first, last = map(int, options.seeds.split(":"))
    seeds = [
        s for s in range(first, last) if (before.get(s) == "failed" if options.again else s not in before)
    ]
    deadline, found = time.monotonic() + 60 * options.minutes, Counter()
    for seed in seeds:
        if time.monotonic() > deadline:
            break
        case = of_seed(seed)
        verdict = _judged(case)
        _print(f"seed {seed}", case, verdict)
        smallest = _shrink(case, verdict) if options.shrink and verdict.result == "failed" else None
        found[verdict.result] += 1
        entry = {"seed": seed, "case": case.arguments(), "shrunk": smallest and smallest.arguments()}
        with file.open("a") as results:
            results.write(json.dumps(entry | vars(verdict)) + "\n")
    words = ", ".join(f"{count} {result}" for result, count in found.items()) or "nothing to do"
    print(f"{words}; {len(seeds) - found.total()} of the seeds left; {file}")
    return 1 if found["failed"] else 0


def _repeat(case: Case, shrink: bool) -> int:
    verdict = _judged(case)
    _print("case", case, verdict)
    if shrink and verdict.result == "failed":
        _shrink(case, verdict)
    return 1 if verdict.result == "failed" else 0


def _judged(case: Case) -> Verdict:
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return judge(case, directory)
    finally:
        shutil.rmtree(directory)


def _shrink(case: Case, verdict: Verdict) -> Case:
    smallest = shrunk(case, lambda smaller: _judged(smaller).kind == verdict.kind)
    print(f"  smallest: python -m tests.fuzz --case {smallest}", flush=True)
    return smallest


def _print(name: str, case: Case, verdict: Verdict) -> None:
    """One line a case; under it the end of what a failure said, which results.jsonl has whole."""
    said = verdict.kind if verdict.result == "failed" else verdict.text
    print(f"{name} {verdict.result} in {verdict.seconds:.0f} s ({said}): --case {case}", flush=True)
    if verdict.result == "failed":
        print("    " + "\n    ".join(verdict.text.splitlines()[-12:]), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
