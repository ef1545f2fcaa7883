"""The command line: faults of the machine that are really there, files, statuses and mistakes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hcmegatron.cli import main
from hcmegatron.planner.machines import load_machine
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.ranks import RankInfo
from launch.doctor import cli
from launch.doctor.board import Lost
from tests.ranks import ROOT

DOCTOR = [sys.executable, "-m", "hcmegatron", "doctor"]


def run(command, **environment):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)


def can_mount():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def test_what_is_really_wrong_with_a_machine_is_named(tmp_path):
    """A Pyramid apex on the path, 64 KiB of shared memory, a run directory that is mounted read-only."""
    if not can_mount():
        pytest.skip("mounting takes a mount namespace (unshare -m), which this user may not have")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "disk").mkdir()
    mounts = (
        f'mount -t tmpfs -o size=64k none /dev/shm && mount -t tmpfs -o ro none {tmp_path}/disk && exec "$@"'
    )
    asked = ["configs/quickstart.yaml", f"--run.dir={tmp_path}/disk/run", "--json"]
    done = run(["unshare", "-m", "sh", "-c", mounts, "-", *DOCTOR, *asked], PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 5, done.stderr
    faults = {one["name"]: one for one in json.loads(done.stdout)["findings"] if one["level"] == "fault"}
    assert faults.keys() == {"NVIDIA apex", "shared memory", "run directory"}
    assert faults["NVIDIA apex"]["remedy"] == "pip uninstall apex"
    assert faults["shared memory"]["value"] == "/dev/shm has 0.00 GiB free, for 1 rank"
    assert faults["run directory"]["value"] == f"cannot be written: {tmp_path}/disk: Read-only file system"
    assert done.stderr.startswith("hcmegatron: error: 1 machine: 3 faults, ")


def test_a_doctor_that_is_told_to_end_says_what_it_has_found(tmp_path):
    """As launchers tell it where another rank has died."""
    planted = "e.measure_devices = lambda visit: os.kill(os.getpid(), 15)"
    code = f"import os, sys, launch.doctor.examination as e\n{planted}\nfrom hcmegatron.cli import main\n"
    done = run([sys.executable, "-c", f"{code}sys.exit(main(['doctor', '--json']))"])
    assert done.returncode == 5, done.stderr
    found = {one["name"]: one["value"] for one in json.loads(done.stdout)["findings"]}
    assert found["ranks"] == "told to end (SIGTERM) before everything was looked at" and "open files" in found


def test_a_rank_that_has_lost_rank_0_leaves_the_verdict_to_it(monkeypatch, capsys):
    def lost(*_):
        raise Lost("gone")

    monkeypatch.setattr(cli, "examine", lost)
    asked = (None, None, SimpleNamespace(node="n2"))
    assert cli._rank(*asked, RankInfo(1, 2, 1, 2, "localhost", 1, "a test")) == 0
    assert capsys.readouterr().err == "hcmegatron: rank 1 of 2 on n2: gone\n"
    with pytest.raises(Ended, match="rank 0 of 2 on n2: gone") as ended:
        cli._rank(*asked, RankInfo(0, 2, 0, 2, "localhost", 1, "a test"))
    assert ended.value.status == 5


def test_two_ranks_a_table_and_a_machine_for_the_planner(tmp_path):
    machine, bad = tmp_path / "machine.yaml", tmp_path / "bad"
    done = run([*DOCTOR, "--ranks", "2", "--write", str(machine), "--exclude-bad", str(bad)], COLUMNS="40")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()
    assert first[1].split() == ["looked", "at", "found", "remedy"]
    assert "not looked at: no GPU" in done.stdout and "\x1b" not in done.stdout
    assert first[-1].startswith("1 machine: 0 faults, ")
    assert bad.read_text() == "" and load_machine(machine).gpus_per_node == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--ranks", "0"], "--ranks 0: is not a number of ranks; use 1 or more"),
        (["--timeout", "soon"], "--timeout soon: is not a number of seconds from 1 to 3600"),
        (["--training.steps=3"], "--training.steps=3: a setting changes a configuration; name its FILE"),
        (["--write", "/no/such/file"], "/no/such/file: there is no directory /no/such"),
        (["no.yaml"], "no.yaml"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert main(["doctor", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_ranks_under_a_launcher(capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert main(["doctor", "--ranks", "2"]) == 2
    assert "--ranks 2: torchrun has started the ranks; leave it out" in capsys.readouterr().err
