"""The check of a GPU machine: whatever a phase does, the next one runs, and what was found is kept and told."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import ROOT, run_ranks
from tests.tools.gpu_cases import TELLS, phase
from tools.gpu_check import __main__ as program
from tools.gpu_check import phases, report, results, run
from tools.gpu_check.phases import PHASES, Phase
from tools.gpu_check.results import Folder, Outcome

FACTS = {
    "miniature": False,
    "date": "2026-11-26 10:00 UTC",
    "host": {"cores": 16},
    "gpus": [{"name": "H100", "capability": "sm_90", "multiprocessors": 132, "memory_bytes": 80 << 30}],
    "driver": "580.1",
    "nccl": [2, 28, 9],
    "versions": {"torch": "2.11.0", "NCCL": "2.28.9"},
    "packages": {"megatron.core": "0.19.2", "triton": "3.6.0", "pytest": "9.0", "apex": None},
    "commit": "abc",
    "environment": {"LD_PRELOAD": None},
}


@pytest.fixture
def small(monkeypatch):
    """Phases of these names in place of the real ones."""

    def put(*chosen):
        own = tuple(one if isinstance(one, Phase) else phase(one) for one in chosen)
        monkeypatch.setattr(run, "PATIENCE", 1)
        for module in (program, phases):
            monkeypatch.setattr(module, "PHASES", own)
        monkeypatch.setattr(run, "FACTS", TELLS)

    return put


def read(out):
    return json.loads(
        (out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )


def ended(out):
    return {one["name"]: (one["status"], one["reason"]) for one in read(out)["phases"]}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_phase_that_misbehaves_is_told_of_and_never_stops_the_next(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GPUS_OF_TEST", "1")
    bad = ("wrong", "raises", "dies", "babbles", "full")
    small(
        "fine",
        *(phase(name, shared=True) for name in bad),
        phase("hangs", 8, shared=True),
        phase("children", 10, shared=True),
    )
    out = tmp_path / "out"
    assert program.main(["--out", str(out)]) == 1
    assert list(ended(out)) == ["fine", *bad, "hangs", "children"]
    found = ended(out)
    assert found["fine"] == ("passed", "")
    assert found["wrong"] == ("failed", "two and two")
    assert found["raises"] == ("failed", "ValueError: no more numbers")
    assert found["dies"] == ("crashed", "by SIGSEGV")
    assert found["babbles"] == ("passed", "6 unreadable lines among its rows")
    assert found["full"][0] == "failed" and "No space left on device" in found["full"][1]
    assert found["hangs"] == ("timed out", "after 8 s")
    assert found["children"] == ("failed", "bad one; slow one")
    rows = {one["name"]: one["rows"] for one in read(out)["phases"]}
    for name in ("raises", "dies", "babbles", "full", "hangs"):
        assert rows[name][0]["what"] == "before", name
    assert rows["babbles"][0]["value"] == "nan"
    assert not alive(rows["hangs"][1]["value"])
    assert [row.get("detail") for row in rows["children"] if row["kind"] == "check"][1:] == [
        "ended with status 1; see children.bad_one.log",
        "was not done in time; see children.slow_one.log",
    ]
    (stacks,) = [one["log"] for one in read(out)["phases"] if one["name"] == "hangs"]
    assert "gpu_phases.py" in stacks and "in hangs" in stacks
    table = (out / "report.md").read_text()
    assert "| device | a GPU (sm_90" in table and "| speed | 3.25 GB/s |" in table
    assert "| hangs | timed out: after 8 s |" in table and "\x1b" not in table
    assert table in capsys.readouterr().out


CHOSEN = "fine", "wrong", "slow", "babbles"
PROGRAM = f"""
import sys
from tests.tools import gpu_cases
from tools.gpu_check import __main__ as program, run
program.PHASES = tuple(map(gpu_cases.phase, {CHOSEN}))
run.FACTS = gpu_cases.TELLS
sys.exit(program.main(sys.argv[1:]))
"""


def stopped_by(number, out):
    """The exit status of a check that is sent a signal while `slow` runs, and that phase's process."""
    command = [sys.executable, "-c", PROGRAM, "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (rows := Folder(out / "phases").found("slow").rows) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(timeout=30), rows[0]["value"]


def test_interrupted_and_resumed(small, tmp_path, monkeypatch):
    """By Ctrl-C in the middle: what is left to do is done by --resume, and nothing twice."""
    monkeypatch.setenv("GPUS_OF_TEST", "1")
    out = tmp_path / "out"
    status, pid = stopped_by(signal.SIGINT, out)
    assert status == 128 + signal.SIGINT and not alive(pid)
    words = {name: status for name, (status, _) in ended(out).items()}
    assert words == {"fine": "passed", "wrong": "failed", "slow": "interrupted", "babbles": "not run"}
    before = {name: (out / "phases" / f"{name}.jsonl").stat().st_mtime_ns for name in ("fine", "wrong")}
    small(*CHOSEN[:2], phase("slow", 1), "babbles")
    assert program.main(["--resume", str(out)]) == 1
    words = {name: status for name, (status, _) in ended(out).items()}
    assert words == {"fine": "passed", "wrong": "failed", "slow": "timed out", "babbles": "passed"}
    for name, when in before.items():
        assert (out / "phases" / f"{name}.jsonl").stat().st_mtime_ns == when
    assert program.main(["--resume", str(out), "--phases", "fine"]) == 1  # again, because it is named
    assert (out / "phases" / "fine.jsonl").stat().st_mtime_ns > before["fine"]
    assert set(ended(out)) == set(CHOSEN)


def test_killed_and_resumed(small, tmp_path):
    """The machine was taken back: nothing runs on, and what had ended is still there."""
    out = tmp_path / "out"
    status, pid = stopped_by(signal.SIGKILL, out)
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert status == -signal.SIGKILL and not alive(pid) and not (out / "report.json").exists()
    small(*CHOSEN[:2], phase("slow", 1), "babbles")
    assert program.main(["--resume", str(out)]) == 1
    words = {name: status for name, (status, _) in ended(out).items()}
    assert words == {"fine": "passed", "wrong": "failed", "slow": "timed out", "babbles": "passed"}


def test_a_machine_whose_first_import_is_slow_is_known_all_the_same(tmp_path, monkeypatch):
    """On a GPU too, of which nobody knows before."""
    monkeypatch.setenv("GPUS_OF_TEST", "1")
    monkeypatch.setattr(run, "FACTS", Phase("machine", "", "", 1, "tests.tools.gpu_phases:tell_late"))
    monkeypatch.setattr(run, "PATIENCE", 60)
    facts = run.Check(Folder(tmp_path), False, {}).machine()
    assert len(facts["gpus"]) == 1 and "unknown" not in facts


def test_results_of_another_tree_are_not_mixed(small, tmp_path, monkeypatch, capsys):
    small("fine")
    out = str(tmp_path / "out")
    assert program.main(["--out", out]) == 0
    monkeypatch.setenv("COMMIT_OF_TEST", "def")
    for arguments, words in (
        (["--resume", out], "commit are not what they were"),
        (["--out", out], "it holds a check already; go on with --resume"),
        (["--resume", f"{out}/nothing"], "no check has begun there"),
        (["--phases", "fines"], "no such phase; known: "),
        (["--minutes", "0"], "--minutes 0: has to be above 0"),
        (["--source", f"{out}/nothing", "--out", f"{out}2"], "there is no such file"),
        (["--wheels", out, "--out", f"{out}2"], "there are no wheels in it"),
    ):
        with pytest.raises(SystemExit) as leaving:
            program.main(arguments)
        assert leaving.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not Path(f"{out}2").exists()


def test_a_full_disk_costs_the_files_and_not_the_answer(small, tmp_path, capsys):
    """The program's own files cannot be written: all is on standard output, and it says what is missing."""
    small("fine", "wrong")
    out = tmp_path / "out"
    write = Path.write_text

    def no_room(path, *arguments, **options):
        if "out" in path.parts:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", no_room)
        assert program.main(["--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "| wrong | failed: two and two |" in said.out
    assert "report.json could not be written: [Errno 28] No space left" in said.err
    assert "wrong: how it ended could not be written down" in said.err


def test_the_whole_has_a_limit(small, tmp_path):
    """A phase begins only where half of its time is left, and ends with the whole."""
    small(phase("slow", 4), phase("fine", 60))
    out = tmp_path / "out"
    assert program.main(["--out", str(out), "--minutes", "0.1"]) == 1
    found = ended(out)
    assert found["slow"][0] == "timed out"
    assert found["fine"][0] == "not run" and "of 60 s for it" in found["fine"][1]


def test_what_a_machine_lacks_is_a_reason():
    named = {one.name: one for one in PHASES}
    two = {**FACTS, "gpus": FACTS["gpus"] * 2}
    assert phases.missing_for(named["kernels"], FACTS) is None
    assert phases.missing_for(named["receives"], FACTS) == (
        "1 of 2 GPUs, and NCCL 2.28.9, where ranks share one from 2.30 on"
    )
    assert phases.missing_for(named["receives"], {**FACTS, "nccl": [2, 30, 1]}) is None
    assert phases.missing_for(named["pipelines"], {**FACTS, "nccl": [2, 30, 1]}) == "1 of 2 GPUs"
    assert phases.missing_for(named["pipelines"], two) is None
    bare = {**FACTS, "packages": {"triton": "3.6.0"}}
    assert phases.missing_for(named["layer"], bare) == "megatron.core cannot be imported"
    assert phases.missing_for(named["queues"], bare) is None
    assert phases.missing_for(named["pipelines"], {**FACTS, "gpus": [], "miniature": True}) is None


def test_ten_minutes_are_laid_out_in_the_documentation():
    assert phases.FACTS_SECONDS + phases.most_seconds(phases.of_one_gpu()) <= 60 * phases.MINUTES
    assert phases.phase_table() in (ROOT / "docs" / "gpu.md").read_text()
    assert len({one.name for one in PHASES}) == len(PHASES)


def test_what_is_timed_runs_alone():
    at_once = [[one.name for one in wave] for wave in phases.waves(PHASES)]
    assert [wave for wave in at_once if len(wave) > 1] == [
        ["tests", "equality", "schedules", "kinds"],
        ["nccl", "host-syncs", "trace"],
    ]
    small = list(phases.waves(PHASES, miniature=True))
    assert tuple(one for wave in small for one in wave) == PHASES and {len(wave) for wave in small[:-1]} == {
        3
    }


def test_the_table_claims_figures_of_a_gpu_only_where_there_is_one():
    rows = {
        "kernels": [
            {"kind": "figure", "what": "read", "value": 253.456, "unit": "us"},
            {"kind": "figure", "what": "calls|times", "value": 7, "unit": ""},
            {"kind": "check", "what": "dH", "holds": True, "detail": "1e-7"},
            {"kind": "check", "what": "dphi", "holds": False, "detail": ""},
            {"kind": "skipped", "what": "TileKernels", "reason": "not installed"},
        ]
    }
    shown = [one for one in PHASES if one.name in ("kernels", "pipelines")]
    outcomes = {"kernels": Outcome("kernels", "failed", "dphi", 12.34)}
    for miniature in (False, True):
        facts = {**FACTS, "miniature": miniature}
        content = report.as_json(facts, shown, outcomes, rows, {"kernels": "last words"})
        table = report.as_markdown(content)
        assert content["measured"] is not miniature
        assert "| kernels | failed: dphi | 12.3 | 60 | 1 of 2 hold |" in table
        assert "| pipelines | not run | 0.0 | 150 |  |" in table
        assert "| TileKernels | not measured: not installed |" in table
        assert ("| read | not measured |" in table) == miniature
        assert ("| read | 253.5 us |" in table) != miniature
        assert ("| calls\\|times | 7 |" in table) != miniature
        assert f"| dH | holds{' on the CPU' if miniature else ''} (1e-7) |" in table
    assert "| device | H100 (sm_90, 132 multiprocessors, 80 GiB) |" in table
    assert "| driver | 580.1 |" in table and "| date | 2026-11-26 10:00 UTC |" in table
    assert "| absent | apex |" in table


def test_rows_that_were_cut_off():
    whole = '{"kind": "check", "what": "a", "holds": true, "detail": ""}\n'
    assert results.parse(whole * 2 + whole[:20]) == ([json.loads(whole)] * 2, 1)
    assert results.parse("") == ([], 0)


def test_half_an_outcome_is_none(tmp_path):
    folder = Folder(tmp_path)
    folder.keep(Outcome("a", "passed"))
    (tmp_path / "b.json").write_text('{"name": "b", ')
    assert folder.outcomes() == {"a": Outcome("a", "passed")}


@pytest.mark.ranks
def test_everything_in_miniature(tmp_path):
    """The same phases on the CPU: all of them pass, and no figure is claimed of a GPU."""
    out = tmp_path / "out"
    ((status, said),) = run_ranks(
        1,
        "tests.tools.gpu_workers:whole",
        str(out),
        process_group=False,
        timeout=280,
        preload=("tests.tools.gpu_preload",),
    )
    found = {one["name"]: one for one in read(out)["phases"]}
    assert list(found) == [one.name for one in PHASES]
    assert {name: (one["status"], one["reason"]) for name, one in found.items()} == dict.fromkeys(
        found, ("passed", "")
    ), said
    assert status == 0 and read(out)["measured"] is False
    for name, one in found.items():
        assert one["rows"], name
    whats = {name: {row["what"] for row in one["rows"]} for name, one in found.items()}
    stalls = "CUDA_DEVICE_MAX_CONNECTIONS 8, priority -1: a spinning receive stalls others"
    assert stalls in whats["queues"] and stalls in (ROOT / "docs" / "gpu.md").read_text()
    assert {"gpipe, 2 ranks", "1f1b, 2 ranks", "dualpipev, 2 ranks"} <= whats["schedules"]
    assert {"1f1b: the losses of one rank", "dualpipev, overlapped: the losses of one rank"} == whats["nccl"]
    assert {"dphi against fp64, float32", "te", "liger", "tile_kernels", "compile"} <= whats["kernels"]
    assert {f"{name}: exposed communication" for name in ("1f1b", "dualpipe", "dualpipev")} <= whats[
        "pipelines"
    ]
    assert (out / "trace.json.gz").stat().st_size > 1000
    table = (out / "report.md").read_text()
    for section in table.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
        for line in lines:
            cell = line.rsplit("| ", 1)[1]
            assert cell.startswith(("not measured", "holds on the CPU")), line


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(minutes, capsys):
    with pytest.raises(SystemExit):
        program.main([f"--minutes={minutes}"])
    assert f"--minutes {minutes}: has to be above 0" in capsys.readouterr().err
