"""`hcmegatron report`: files where they are said, mistakes in one line, no torch."""

import importlib.util
import os
import resource
import subprocess
import sys

import pytest

from hcmegatron.cli import main
from hcmegatron.report import files
from tests.pace import pace
from tests.ranks import ROOT
from tests.report.run_directories import make_run


def test_two_seconds_of_processor_and_no_torch(tmp_path):
    """Processor time, which other programs on the machine do not lengthen."""
    run = make_run(tmp_path / "run")
    code = (
        "import sys; from hcmegatron.cli import main; "
        f"status = main(['report', {str(run)!r}, '--no-files']); "
        "sys.exit(status or 3 * bool({'torch', 'megatron', 'matplotlib'} & sys.modules.keys()))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0 * pace()
    assert done.stdout == f"{run / 'report.html'}\n" and not (run / "report-files").exists()


def test_files_are_beside_the_page(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", steps=3)
    monkeypatch.setattr(files, "write", lambda parts, folder: [folder / "x"])  # what it writes: test_page.py
    assert main(["report", str(run), "--out", str(tmp_path / "mine.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine.html'}\n{tmp_path / 'mine-files'}: 1 files\n"
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n{run / 'report-files'}: 1 files\n"
    assert main(["report", str(run), "--out", str(tmp_path / "run.html")]) == 0  # not into the run directory
    assert capsys.readouterr().out == f"{tmp_path / 'run.html'}\n{tmp_path / 'run-files'}: 1 files\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the following arguments are required: RUN; see hcmegatron report --help"),
        (["RUN", "--compare"], "--compare: there is one run; name the ones to compare with it"),
        (["RUN", "--port=1"], "--port = 1: nothing listens without --serve; add it"),
        (["RUN", "--serve", "--port=x"], "--port = x: is no port; use a number from 1 to 65535"),
        (["RUN", "--serve", "--port=65536"], "--port = 65536: is no port"),
        (["RUN", "--serve", "--out=a.html"], "--out: --serve writes no files; leave one of the two out"),
        (["RUN", "--serve", "--no-files"], "--no-files: --serve writes no files"),
        (["RUN", "--out=RUN"], "--out = RUN: has no ending; name a file, such as RUN.html"),
        (["RUN", "--out=none/a.html"], "--out = none/a.html: there is no directory none; name another file"),
        (["NONE"], "NONE: there is no such directory; name a run directory, such as runs/NAME"),
        (["RUN", "--steps=3"], "unrecognized arguments: --steps=3; see hcmegatron report --help"),
    ],
)
def test_a_mistake_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "RUN", steps=1)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"hcmegatron: error: {line}") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("plotly", "'hcmegatron[report]'\n"),
        ("matplotlib", "'hcmegatron[report]'; --no-files writes the page alone\n"),
    ],
)
def test_a_package_that_is_missing_is_one_line_with_the_remedy(
    package, remedy, tmp_path, monkeypatch, capsys
):
    run, find = make_run(tmp_path / "run", steps=1), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *p: None if name == package else find(name, *p)
    )
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"hcmegatron: error: report needs the package {package}, which is not installed; pip install {remedy}"
    )


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/self"), reason="there is no /proc here")
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=1)
    assert main(["report", str(run), "--out", "/proc/self/report.html"]) == 2
    assert "/proc/self/report.html: cannot be written: " in capsys.readouterr().err
    (run / "report-files").write_text("somebody's own")
    assert main(["report", str(run)]) == 2
    assert (
        f"{run / 'report-files'}: cannot be written: File exists; name another --out"
        in capsys.readouterr().err
    )
