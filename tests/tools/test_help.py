"""Every program of tools/ says what it is for, and what it does not understand, without running."""

import pytest

from tests.ranks import ROOT, run_ranks
from tests.tools import workers

PROGRAMS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)
RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


@pytest.mark.ranks
def test_every_program_answers_help_and_refuses_what_it_does_not_know():
    assert {"bench", "bench_experts", "bench_loop", "bench_recompute", "compare_dtypes"} <= set(PROGRAMS)
    benchmarks = {path.stem for path in (ROOT / "tools").glob("bench_*.py")}
    assert benchmarks - set(PROGRAMS) == set()  # tools.bench would run a file that does nothing
    (helped,) = run_ranks(1, workers.answers, PROGRAMS, ["--help"], **RUN)
    for name, (status, out, err) in helped.items():
        assert (
            status in (0, None) and out.startswith("usage: ") and len(out.splitlines()) > 3 and err == ""
        ), name
    (refused,) = run_ranks(1, workers.answers, PROGRAMS, ["--no-such=1"], **RUN)
    for name, (status, out, err) in refused.items():
        assert status == 2 and out == "" and "no-such" in err.splitlines()[-1], name
