"""Every benchmark of the project, one after another: python -m tools.bench [NAME ...]

A benchmark is a file tools/bench_NAME.py that prints its table; each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.machine import NO_VERDICT

FOLDER = Path(__file__).parent


def main() -> int:
    """Run the named benchmarks, or all. Returns 1 if one of them failed, else NO_VERDICT if one gave none."""
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{', '.join(unknown)}: unknown; known: {', '.join(known)}")
    failed, undecided = [], []
    for name in names or known:
        print(f"\n== {name}: python -m tools.bench_{name}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"tools.bench_{name}"], cwd=FOLDER.parent).returncode
        if status:
            (undecided if status == NO_VERDICT else failed).append(name)
    if failed:
        print(f"\nbench: failed: {', '.join(failed)}", file=sys.stderr)
    if undecided:
        print(f"\nbench: no verdict on a busy machine: {', '.join(undecided)}", file=sys.stderr)
    return 1 if failed else NO_VERDICT if undecided else 0


if __name__ == "__main__":
    sys.exit(main())
