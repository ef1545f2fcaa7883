"""A study's directory: what is refused in one line, what is told, and the states of its runs from files alone."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from hcmegatron.cli import main
from hcmegatron.config import ConfigError, dump_config, read_config
from hcmegatron.studies import directory, runner
from hcmegatron.studies.child import Child
from hcmegatron.studies.directory import StudyDirectory
from hcmegatron.studies.launch_cli import planned, sized
from hcmegatron.studies.record import read_record
from hcmegatron.studies.run_cli import opened
from hcmegatron.studies.runner import require_ended
from hcmegatron.studies.slots import Slots
from hcmegatron.studies.state import State, has_diverged, note, state_of
from launch.job import LaunchError
from tests.studies.miniature import RUNS, write_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def claimed(study, *words):
    own, found = opened(study, list(words))
    claim = StudyDirectory(own.run_dir, own.name, found, own.report.baseline)
    claim.lock.close()
    return claim


def refused(study, *words):
    with pytest.raises(ConfigError) as caught:
        claimed(study, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def begin(claim, name):
    """A run's own configuration, as it writes it when it begins."""
    run = claim.record.run_dir(name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("# 0123: written by a run\n" + dump_config(claim.configs[name]))


def test_what_is_written(study):
    claim = claimed(study)
    assert [entry.name for entry in claim.record.entries] == RUNS
    assert read_record(claim.path) == claim.record and claim.says == []
    config = read_config(claim.record.config_file("shc-seed1--at0.5"))[0]
    assert config.run.dir == "runs/studies/mini/runs/shc-seed1--at0.5"
    assert config.checkpoint.load == "runs/studies/mini/runs/shc-seed1/checkpoints/step-00000006"
    assert (config.checkpoint.resume, config.health.diverged_after, config.training.max_bad_steps) == (
        "auto",
        8,
        8,
    )
    assert (config.training.steps, config.optimizer.decay_steps) == (8, 2)
    before = {path: path.stat().st_mtime_ns for path in claim.path.glob("configs/*")}
    claimed(study)
    assert before == {path: path.stat().st_mtime_ns for path in claim.path.glob("configs/*")}


def test_the_reports_baseline_is_written_and_files_without_one_are_read(study):
    claim = claimed(study, "--study.report.baseline=shc")
    file = claim.path / "study.yaml"
    assert read_record(claim.path).baseline == "shc"
    file.write_text(file.read_text().replace("baseline: shc\n", ""))
    assert read_record(claim.path).baseline is None


def test_a_branch_begins_with_its_runs_weights_and_not_with_what_that_began_with(study):
    configs = claimed(study, "--study.settings.checkpoint.init_from=there").configs
    assert configs["shc-seed1"].checkpoint.init_from == "there"
    assert configs["shc-seed1--at0.5"].checkpoint.init_from is None


def test_a_branch_that_is_no_configuration_is_one_line(study):
    """The run has a step 12, and its first branch has not."""
    said = refused(study, "--study.settings.run.profile_at=[12]", "--study.settings.parallel.schedule=1f1b")
    assert said.startswith(
        "run residual-seed1--at0.5: run.profile_at = [12] with training.steps = 8 names a step"
    )


@pytest.mark.parametrize("verb", ["run", "launch"])
def test_a_study_that_takes_more_than_its_limits_is_not_begun(verb, study, capsys):
    assert main(["study", verb, str(study), "--study.limits.max_gpu_hours=1e-12"]) == 2
    assert "limits.max_gpu_hours=1e-12: is less than the " in capsys.readouterr().err
    assert not Path("runs").exists()


def test_another_studys_directory_or_somebodys(study, tmp_path):
    claimed(study)
    other = tmp_path / "other.yaml"
    shutil.copy(study, other)
    assert "is of the study mini, and this is other; choose another" in refused(
        other, "--study.run_dir=runs/studies/mini"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    assert "is no study's directory: letter.txt is there, and no study.yaml" in refused(
        study, "--study.run_dir=mine"
    )
    assert "cannot be used: Not a directory" in refused(study, "--study.run_dir=mini.yaml")
    (tmp_path / "runs/studies/mini/study.yaml").write_text("runs: 3\n")
    assert "study.yaml: is not as it was written; remove it" in refused(study)


def test_a_run_of_another_configuration_is_refused_and_one_that_only_computes_otherwise_is_not(study):
    claim = claimed(study)
    begin(claim, "residual-seed1")
    rate = "--study.settings.optimizer.lr=0.5"
    assert refused(study, rate) == (
        "runs/studies/mini/runs/residual-seed1 is a run of another configuration: optimizer.lr = 0.004 there, 0.5 in "
        "the study; move it away to train it anew, or choose another --study.run_dir for the changed study"
    )
    assert claimed(study, "--study.settings.training.log_every=7").says == []
    shutil.rmtree(claim.record.run_dir("residual-seed1"))
    assert claimed(study, rate).says == ["6 runs have not begun, and were changed: residual-seed1 and others"]


def test_a_run_directory_of_another_study_is_found(study, capsys):
    claim = claimed(study)
    begin(claim, "shc-seed1")
    claim.record.run_dir("shc-seed1").rename(claim.record.run_dir("residual-seed1"))
    assert "residual-seed1 is a run of another configuration: connection.kind = " in refused(study)
    record = claim.record.path
    (record / "runs/residual-seed1/checkpoints/step-00000016").mkdir(parents=True)
    (record / "runs/residual-seed1/checkpoints/step-00000016/manifest.json").touch()
    (record / "runs/residual-seed1/metrics.jsonl").write_text(
        '{"step": 16, "kind": "validation", "loss": 2.0}\n'
    )
    assert main(["study", "collect", str(record)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is a run of another configuration: connection.kind = " in said


def test_runs_that_are_new_are_taken_up_and_others_left(study):
    claimed(study, "--study.axes.kind=[residual]")
    assert claimed(study).says == ["3 runs are new: shc-seed1 and others"]
    assert claimed(study, "--study.axes.kind=[shc]").says == [
        "3 runs are no longer in the study, and stay where they are: residual-seed1 and others"
    ]


def test_one_command_at_a_time(study, monkeypatch):
    claim = claimed(study)
    monkeypatch.setattr(directory, "ENDING_S", 0.1)
    with (claim.path / directory.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is in use by another `hcmegatron study`" in refused(study)


def test_a_configuration_that_was_changed_by_hand_is_found(study, capsys):
    claim = claimed(study)
    file = claim.record.config_file("shc-seed1")
    finish(claim.record.run_dir("shc-seed1"), 16)
    file.write_text(file.read_text().replace("lr: 0.004", "lr: 0.4"))
    assert main(["study", "collect", str(claim.path)]) == 2
    assert f"{file}: was changed since the study wrote it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["collect", "nowhere"], "nowhere: there is no such file, nor a packaged study"),
        (["collect", "."], ".: is no study's directory (there is no study.yaml)"),
        (["status", "mini.yaml"], "runs/studies/mini: is no study's directory"),
        (["run", "mini.yaml", "--jobs=0"], "--jobs = 0: is out of range; use 1 to 1024"),
        (["run", "mini.yaml", "--fast"], "--fast: is neither a variant of mini.yaml"),
        (["launch", "mini.yaml", "--nodes=0"], "nodes"),
    ],
)
def test_mistakes_are_one_line(words, said, study, capsys):
    assert main(["study", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def finish(run, steps, **losses):
    path = run / f"checkpoints/step-{steps:08d}"
    path.mkdir(parents=True)
    (path / "manifest.json").touch()
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": steps, "kind": "validation", "loss": 2.0} | losses) + "\n"
    )


def ended(run, status, step=0, asked=False):
    note(run, "ended", status=status, step=step, asked=asked)


def test_states_from_files_alone(tmp_path):
    run = tmp_path / "run"
    assert state_of(run, 16) == State("waiting", 0)
    ended(run, 75)
    ended(run, -15, asked=True)  # a signal came before it could listen
    assert state_of(run, 16) == State("waiting", 0)
    (run / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 3.0}\n{"st')
    assert state_of(run, 16) == State("interrupted", 0)
    ended(run, 1)
    ended(run, -9)
    assert state_of(run, 16) == State("failed", 0, 2)
    path = run / "checkpoints/step-00000004"
    path.mkdir(parents=True)
    assert state_of(run, 16).step == 0
    (path / "manifest.json").touch()
    assert state_of(run, 16) == State("interrupted", 4)  # there is a new checkpoint
    ended(run, 1, step=4)
    assert state_of(run, 16) == State("failed", 4, 1)
    (run / "train.log").write_text("step 9\nended by Diverged: the loss\n")
    assert state_of(run, 16) == State("diverged", 4)
    assert state_of(run, 4) == State("diverged", 4)  # its last evaluation is not there
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state_of(run, 16) == State("running", 4)


def test_a_branch_diverged_with_its_run_only_where_that_left_no_checkpoint(study):
    claim = claimed(study)
    states = dict.fromkeys(RUNS, State("waiting", 0)) | {"shc-seed1": State("diverged", 8)}
    found = {entry.name: has_diverged(entry, states) for entry in claim.record.entries}
    assert [name for name in RUNS if found[name]] == ["shc-seed1", "shc-seed1--at0.75"]


def test_a_run_with_test_sets_is_finished_once_they_are_evaluated(study, tmp_path):
    assert {entry.evaluation for entry in claimed(study).record.entries} == {"validation"}
    tests = "--study.settings.data.test=[mine]"
    assert {entry.evaluation for entry in claimed(study, tests).record.entries} == {"test"}
    run = tmp_path / "run"
    finish(run, 16)
    ended(run, -9, step=16)
    assert (state_of(run, 16).name, state_of(run, 16, "test").name) == ("finished", "failed")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "kind": "test", "loss": 2.0}\n')
    assert state_of(run, 16, "test").name == "finished"


def test_the_runs_of_a_command_that_was_killed_may_end_first(tmp_path, monkeypatch):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        require_ended([tmp_path])
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(runner, "ENDING_S", 0.1)
        with pytest.raises(LaunchError, match="a run is going on there"):
            require_ended([tmp_path])


def test_a_child_that_leads_no_group_yet_is_killed_too():
    child = Child.__new__(Child)
    with subprocess.Popen(["sleep", "60"]) as process:
        child.pid = process.pid
        child.tell(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_a_job_of_slurm_says_how_it_ended(tmp_path):
    for name, status, state in (("a", "1 a rank died", "failed"), ("b", "75 told to stop", "waiting")):
        (tmp_path / name / "launch").mkdir(parents=True)
        (tmp_path / name / "launch/ended").write_text(status + "\n")
        assert state_of(tmp_path / name, 16).name == state
    os.utime(tmp_path / "a/launch/ended", (1e9, 1e9))
    ended(tmp_path / "a", 75)  # `study run` has trained it since
    assert state_of(tmp_path / "a", 16).name == "waiting"


def test_cores_belong_to_places_and_gpus_to_whoever_is_next():
    slots = Slots(2, [0, 1, 2])
    first, second = slots.take(1), slots.take(4)
    assert (first.cores, second.cores, slots.take(1)) == ((0, 1), (2,), None)
    slots.give(first)
    assert slots.take(1) == first
    assert Slots(3, [4, 5]).take(1).cores == (4, 5)
    slots = Slots(3, [0], ["0", "1", "2"])
    two = slots.take(2)
    assert two.gpus == ("0", "1") and slots.take(2) is None and slots.take(1).gpus == ("2",)
    slots.give(two)
    assert slots.take(2).gpus == ("0", "1")


def test_branches_are_rows_under_their_runs_numbers(study):
    entries = claimed(study).record.entries
    waiting = dict.fromkeys(RUNS, State("waiting", 0))
    trunks = {"residual-seed1", "shc-seed1"}
    waves, held = planned(entries, waiting, {}, trunks)
    assert [[(n, entry.name) for n, entry in wave.rows.items()] for wave in waves] == [
        [(0, "residual-seed1"), (1, "shc-seed1")],
        [(0, "residual-seed1--at0.5"), (1, "shc-seed1--at0.5")],
        [(0, "residual-seed1--at0.75"), (1, "shc-seed1--at0.75")],
    ]
    assert held == {} and [wave.script for wave in waves][1:] == [
        "launch/branches-1.sh",
        "launch/branches-2.sh",
    ]
    states = waiting | {
        "residual-seed1": State("finished", 16),
        "residual-seed1--at0.5": State("diverged", 6),
    }
    ready = {*trunks, "residual-seed1--at0.5", "residual-seed1--at0.75"}
    waves, held = planned(entries, states, {"shc-seed1": "job 5 is PENDING already"}, ready)
    assert [list(wave.rows) for wave in waves] == [[0]] and waves[0].rows[0].name == "residual-seed1--at0.75"
    assert held == {
        "shc-seed1": "job 5 is PENDING already",
        "shc-seed1--at0.5": "its run shc-seed1 has a job already; launch again when that has ended",
        "shc-seed1--at0.75": "its run shc-seed1 has a job already; launch again when that has ended",
    }
    assert planned(entries, dict.fromkeys(RUNS, State("finished", 16)), {}, set(RUNS)) == ([], {})


def test_machines_make_a_runs_gpus():
    assert sized({"ranks_per_node": 8}, 512)["nodes"] == 64 and sized({"nodes": 3}, 512)["nodes"] == 3
    with pytest.raises(LaunchError, match=r"machine\.gpus = 12 of a run do not fill machines"):
        sized({"ranks_per_node": 8}, 12)


def test_the_scripts_of_a_launch(study, capsys):
    assert main(["study", "launch", str(study), "--print", "--study.run_dir=s"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-1\n" in said or "#SBATCH --array=0,1\n" in said
    assert "#SBATCH --output=launch/branches-1-%a.log" in said and not Path("s").exists()
    assert main(["study", "launch", str(study), "--study.run_dir=s"]) == 0
    script = Path("s/runs/launch/branches-2.sh").read_text()
    assert f"    [1]={Path.cwd()}/s/runs/shc-seed1--at0.75\n" in script
    config = read_config(Path("s/runs/shc-seed1--at0.75/launch/config.yaml"))[0]
    assert config.checkpoint.load == "s/runs/shc-seed1/checkpoints/step-00000009"
