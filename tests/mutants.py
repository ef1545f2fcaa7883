"""Runs the mutants that mutmut has made, some five a second: each in a child forked from the collected tests.

    python -m tests.mutants [WORD...]     those whose names hold one of the words and that have no verdict yet

mutmut itself collects the tests anew for every mutant. What it makes, which tests call which function and where
results go stays mutmut's; `mutmut results` and `mutmut show` read them.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

SECONDS = 20  # of the processor for one mutant; six times that by the clock
SURVIVED, KILLED, NO_TESTS, TIMEOUT = 0, 1, 33, 36  # as mutmut writes them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--words", nargs="*", default=[], help="parts of mutants' names; none: all")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """In place of pytest's loop over tests: a loop over mutants."""
    stats = json.loads(Path("mutmut-stats.json").read_text())
    words = session.config.getoption("--words") or [""]
    items = {item.nodeid: item for item in session.items}
    gc.freeze()  # no child copies what its parent has, only to look for garbage there
    assert _status("", session.items) == SURVIVED, "the tests do not pass in a fork, without a mutant"
    for file in sorted(Path().rglob("*.meta")):
        found = json.loads(file.read_text())
        status = found["exit_code_by_key"]
        for name in [name for name in status if status[name] is None and any(word in name for word in words)]:
            calling = stats["tests_by_mangled_function_name"].get(name.rpartition("__mutmut_")[0], [])
            tests = _fastest_first(calling, stats["duration_by_test"])
            status[name] = _status(name, [items[test] for test in tests]) if tests else NO_TESTS
            file.write_text(json.dumps(found, indent=4))
    return True


def _fastest_first(tests: list[str], seconds: dict[str, float]) -> list[str]:
    """File by file, since a file's fixtures are set up and torn down where its tests begin and end."""
    of_file: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=seconds.__getitem__):
        of_file[test.partition("::")[0]].append(test)
    by_mean = sorted(of_file.values(), key=lambda own: sum(seconds[test] for test in own) / len(own))
    return [test for own in by_mean for test in own]


def _status(mutant: str, items: list[pytest.Item]) -> int:
    """SURVIVED where all pass, KILLED by the first that fails, or TIMEOUT."""
    child = os.fork()
    if child == 0:
        status = KILLED
        try:
            os.setpgid(0, 0)
            os.environ["MUTANT_UNDER_TEST"] = mutant
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            following = [*items[1:], None]
            if all(_passes(item, after) for item, after in zip(items, following, strict=True)):
                status = SURVIVED
        finally:
            os._exit(status)
    ended = os.pidfd_open(child)
    if not select.select([ended], [], [], 6 * SECONDS)[0]:
        os.killpg(child, signal.SIGKILL)
    os.close(ended)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGKILL, -signal.SIGXCPU):
        return TIMEOUT
    return SURVIVED if status == 0 else KILLED


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def main(words: list[str]) -> None:
    """Becomes a pytest in mutants/, which has its own tests, and this file as a plugin."""
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    selected = [*settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]]
    os.chdir("mutants")
    quick = ["-q", "--assert=plain", "--tb=native"]
    os.execv(
        sys.executable,
        [sys.executable, "-m", "pytest", "-p", "tests.mutants", *quick, *selected, "--words", *words],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
