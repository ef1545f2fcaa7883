"""`study run`: what is started, in which order and how often; and a real study that is killed and comes to the same."""

import json
import math
import os
import statistics
import time

import pytest

from hcmegatron.cli import main
from hcmegatron.studies.collect import collect
from hcmegatron.studies.record import read_record
from hcmegatron.studies.state import state_of
from tests.ranks import observe_ranks, run_ranks
from tests.studies import study_workers
from tests.studies.miniature import RUNS, write_study
from tests.studies.study_workers import made_up

WORKERS = {"preload": ("tests.studies.study_workers",), "process_group": False, "timeout": 200}


def run(study, how, *words, **options):
    """Status and output of `study run` with made-up runs; the file `started` has their names."""
    own = (f"--study.run_dir={study.parent}/study", *words)
    (outcome,) = observe_ranks(1, made_up, study, how, *own, kwargs=options, **WORKERS)
    assert outcome.exit_code == 0, outcome
    return outcome.result, outcome.output


def started(study):
    return (study.parent / "started").read_text().split()


def states(study):
    record = read_record(study.parent / "study")
    return {entry.name: state_of(record.run_dir(entry.name), entry.steps).name for entry in record.entries}


@pytest.mark.ranks
def test_every_run_is_trained_once_branches_after_their_runs(tmp_path):
    study = write_study(tmp_path)
    status, said = run(study, "finished", "--jobs=2")
    assert status == 0 and sorted(started(study)) == sorted(RUNS) and "(6 of 6)" in said
    order = started(study)
    assert all(order.index(name.partition("--")[0]) <= order.index(name) for name in RUNS)
    assert states(study) == dict.fromkeys(RUNS, "finished")
    status, said = run(study, "finished")
    assert status == 0 and len(started(study)) == 6 and "nothing to train: all 6 runs have ended" in said


@pytest.mark.ranks
def test_what_fails_is_tried_again_so_often_and_the_others_are_trained(tmp_path):
    study = write_study(tmp_path)
    status, said = run(study, "fails", "--study.retries=2")
    assert status == 1 and started(study).count("shc-seed1") == 3 and "shc-seed1--at0.5" not in started(study)
    assert "shc-seed1: failed 2 times (status 1), started again: hcmegatron: error: no luck" in said
    assert "shc-seed1: failed 3 times (status 1), left alone, see " in said
    assert "1 runs failed: shc-seed1; --again tries them once more" in said
    assert "2 branches have no checkpoint to begin with: shc-seed1--at0.5 and others" in said
    assert states(study)["shc-seed1"] == "failed" and states(study)["residual-seed1--at0.5"] == "finished"
    assert run(study, "finished", "--study.retries=2")[0] == 1 and started(study).count("shc-seed1") == 3
    assert run(study, "finished", "--study.retries=2", "--again")[0] == 0
    assert states(study) == dict.fromkeys(RUNS, "finished")


@pytest.mark.ranks
def test_ends_with_a_new_checkpoint_in_between_are_no_failures_in_a_row(tmp_path):
    study = write_study(tmp_path)
    status, said = run(study, "dies", "--study.retries=1")
    assert status == 0 and started(study).count("residual-seed1") == 5 and "failed 2 times" not in said
    assert "failed 1 times (killed by SIGKILL), started again\n" in said


@pytest.mark.ranks
def test_a_run_that_diverges_has_a_result_and_so_have_its_branches(tmp_path):
    study = write_study(tmp_path)
    status, said = run(study, "diverges")
    assert status == 0 and "shc-seed1: diverged, which is its result" in said
    assert started(study).count("shc-seed1") == 1 and states(study)["shc-seed1"] == "diverged"
    rows, missing = collect(read_record(tmp_path / "study"))
    assert not missing and [row["diverged"] for row in rows] == [False] * 3 + [True] * 3
    assert [math.isnan(row["loss"]) for row in rows] == [False] * 3 + [True] * 3
    assert run(study, "finished")[0] == 0 and started(study).count("shc-seed1") == 1


@pytest.mark.ranks
def test_a_signal_is_passed_on_and_the_same_command_goes_on(tmp_path):
    study = write_study(tmp_path)
    status, said = run(study, "waits", "--jobs=2", asked_after=4.0)
    assert status == 75 and "stopped by SIGTERM: 6 of 6 runs are left; the same command goes on" in said
    assert len(started(study)) == 2 and "failed" not in said
    assert states(study)["residual-seed1"] == "waiting"


@pytest.mark.ranks
@pytest.mark.slow
def test_a_real_study_that_is_killed_three_times_comes_to_the_same(tmp_path, capsys):
    """And its table has what a reader of its files would compute by hand."""
    (said,) = run_ranks(1, study_workers.storm, tmp_path, write_study(tmp_path), 3, **WORKERS)
    assert said[-2] == "6 runs, 3 kills: every loss, gradient norm, evaluation and checkpoint as undisturbed"
    assert sum("process group" in line for line in said) == 2
    assert main(["study", "collect", str(tmp_path / "storm")]) == 0
    assert "6 rows, 0 of them diverged" in capsys.readouterr().out
    record = read_record(tmp_path / "storm")
    rows = {row["run"]: row for row in collect(record).rows}
    assert list(rows) == RUNS
    branch, trunk = rows["shc-seed1--at0.5"], rows["shc-seed1"]
    assert (branch["group"], branch["point"], branch["tokens"]) == ("shc-seed1", "at0.5", 8 * 4 * 32)
    assert (trunk["group"], trunk["point"], trunk["tokens"]) == ("shc-seed1", "final", 16 * 4 * 32)
    own = lines(record.run_dir("shc-seed1--at0.5"))
    before = [line for line in lines(record.run_dir("shc-seed1")) if line["step"] <= 6]
    path = [line for line in [*before, *own] if line["kind"] == "train"]
    assert [line["step"] for line in path] == list(range(1, 9))
    assert branch["train_loss"] == pytest.approx(statistics.fmean(line["loss"] for line in path))
    assert branch["loss"] == next(line["loss"] for line in own if line["kind"] == "validation")
    assert branch["grad_norm_max"] == max(line["grad_norm"] for line in path)
    assert branch["hours"] == pytest.approx(sum(line["seconds"] for line in path) / 3600)
    assert path[-1]["lr"] < path[5]["lr"]  # it decays
    assert main(["study", "status", str(tmp_path / "storm")]) == 0
    assert "6 runs: 6 finished" in capsys.readouterr().out


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ranks
def test_nothing_runs_on_when_the_command_is_killed(tmp_path):
    """A SIGKILL of `study run` alone, not of its group: its runs end with it."""
    study = write_study(tmp_path)
    (outcome,) = observe_ranks(1, study_workers.killed, study, **WORKERS)
    assert outcome.exit_code == 0, outcome
    pids = outcome.result
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
