"""What only a GPU can show, in ten minutes: python -m tools.gpu_check [--out DIR | --resume DIR]

Phases run in the order of `--list`, most valuable first, each in a process of its own that is ended at its limit; what
it has found until then is kept. Written are report.json and report.md. Without a GPU the same program runs in
miniature, and its tables say "not measured". Nothing is installed, and nothing is fetched.

    python -m tools.gpu_check prepare --out DIR    collects what a machine without pip and network needs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu_check import prepare, report, results, run, wheels
from tools.gpu_check.phases import (
    FACTS_SECONDS,
    MINUTES,
    PHASES,
    Phase,
    most_seconds,
    of_one_gpu,
    phase_table,
    phases_named,
)
from tools.gpu_check.results import Folder
from tools.gpu_check.run import PATIENCE, Check

USER_ERROR = 2
FINE = ("passed", "skipped")
LAST_LINES = 40  # of a log, in the report


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = made.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="a new directory for the results")
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with what a call that was cut off has left to do"
    )
    made.add_argument(
        "--minutes",
        type=float,
        help=f"for the whole; {MINUTES} on one GPU, and what the phases are allowed elsewhere",
    )
    made.add_argument(
        "--phases", nargs="+", metavar="NAME", help="only these, and again where they have run before"
    )
    made.add_argument("--miniature", action="store_true", help="on the CPU, also where there is a GPU")
    made.add_argument(
        "--source",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders to import from first, such as an unpacked megatron-core",
    )
    made.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="a folder of wheels, of which what is not installed is unpacked",
    )
    made.add_argument(
        "--nccl", type=Path, metavar="FILE", help="a newer libnccl.so.2, for ranks that share a GPU"
    )
    made.add_argument(
        "--list", action="store_true", help="print the phases and their seconds, and run nothing"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything has passed, or could not be run on this machine. 1: it has not. 130: interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["prepare"]:
        return prepare.main(arguments[1:])
    made = parser()
    asked = made.parse_args(arguments)
    if asked.list:
        print(phase_table(), end="")
        print(
            f"one GPU: {FACTS_SECONDS} s for the look at the machine, {most_seconds(of_one_gpu())} s for phases"
        )
        return 0
    if asked.minutes is not None and not asked.minutes > 0:
        made.error(f"--minutes {asked.minutes:g}: has to be above 0")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as site:
        try:
            phases = phases_named(asked.phases) if asked.phases else PHASES
            source = [*asked.source, *([wheels.unpack(asked.wheels, Path(site))] if asked.wheels else [])]
            env = _environment(source, asked.nccl)
            check = Check(_folder(asked.out, asked.resume), asked.miniature, env)
        except (ValueError, OSError) as error:
            made.error(str(error))
        with check.listening():
            facts = check.machine()
            if asked.resume and (unlike := _unlike(asked.resume, check.folder.facts(), facts)):
                made.error(unlike)
            return _checked(check, asked, phases, facts, began)


def _checked(
    check: Check, asked: argparse.Namespace, phases: Sequence[Phase], facts: dict[str, Any], began: float
) -> int:
    """Runs the phases and writes the reports; the exit status."""
    folder = check.folder
    try:
        folder.keep_facts(facts)
    except OSError as error:
        check.troubles.append(f"facts.json could not be written: {error}")
    earlier = run.kept(folder) if asked.resume else {}
    left = [phase for phase in phases if asked.phases or phase.name not in earlier]
    check.phases(left, facts, began + 60 * (asked.minutes or _minutes(facts)))
    outcomes = {**earlier, **check.outcomes}
    shown = [phase for phase in PHASES if not asked.phases or phase.name in outcomes]
    _write(check, report.as_json(facts, shown, outcomes, *_rows_and_logs(folder, outcomes)))
    print(f"{time.monotonic() - began:.0f} s in all")
    if check.interrupted:
        return 128 + check.interrupted
    return int(bool(check.troubles) or any(outcome.status not in FINE for outcome in outcomes.values()))


def _unlike(path: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Why results of now do not belong to those of before; "" where they do."""
    if "unknown" in now:
        return f"--resume {path}: the machine does not say what it is ({now['unknown']})"
    if before and "unknown" not in before and (unlike := results.different(before, now)):
        return f"--resume {path}: {', '.join(unlike)} are not what they were; use --out"
    return ""


def _minutes(facts: Mapping[str, Any]) -> float:
    """For the whole, where nobody has said."""
    if len(facts["gpus"]) == 1:
        return MINUTES
    return 1 + most_seconds(PHASES) / 60 * (PATIENCE if facts["miniature"] else 1)


def _folder(out: Path | None, resume: Path | None) -> Folder:
    """ValueError: there is, or is not, a check in it already."""
    if resume:
        if not (resume / "phases").is_dir():
            raise ValueError(f"--resume {resume}: no check has begun there; use --out")
        return Folder(resume / "phases")
    out = out or Path("bench_out/gpu") / time.strftime("%Y-%m-%d-%H%M%S")
    if (out / "phases").exists():
        raise ValueError(
            f"--out {out}: it holds a check already; go on with --resume {out}, or name another directory"
        )
    (out / "phases").mkdir(parents=True)
    return Folder(out / "phases")


def _environment(source: Sequence[Path], nccl: Path | None) -> dict[str, str]:
    """Of the phases. ValueError: a path is not there."""
    if absent := [path for path in (*source, *([nccl] if nccl else [])) if not path.exists()]:
        raise ValueError(f"{absent[0]}: there is no such file or directory")
    env = {}
    if source:
        paths = [*(str(path.resolve()) for path in source), os.environ.get("PYTHONPATH")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if nccl:
        env["LD_PRELOAD"] = str(nccl.resolve())
    return env


def _rows_and_logs(folder: Folder, outcomes: dict) -> tuple[dict, dict]:
    rows = {name: folder.found(name).rows for name in outcomes}
    logs = {}
    for name, outcome in outcomes.items():
        if outcome.status not in FINE and folder.log(name).exists():
            logs[name] = "\n".join(folder.log(name).read_text(errors="replace").splitlines()[-LAST_LINES:])
    return rows, logs


def _write(check: Check, content: dict[str, Any]) -> None:
    """Both reports, and the Markdown on standard output too, which a full disk does not reach."""
    markdown = report.as_markdown(content)
    print(markdown)
    out = check.folder.path.parent
    for name, text in (("report.json", json.dumps(content, indent=1)), ("report.md", markdown)):
        try:
            (out / name).write_text(text)
        except OSError as error:
            check.troubles.append(f"{out / name} could not be written: {error}")
        else:
            print(f"wrote {out / name}")
    for trouble in check.troubles:
        print(trouble, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
