"""A run directory: what is refused, and whose files are left alone. No ranks: rank 0 is what claims it."""

import json

import pytest

from hcmegatron.config import Config, ConfigError, load_config
from hcmegatron.training import run_directory
from hcmegatron.training.run_directory import RunDirectory, examine_directory

VERSIONS = {"python": "3", "torch": "2", "megatron-core": "0", "command": "train"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(run_directory, "on_first_rank", lambda work: work())
    monkeypatch.setattr(run_directory, "versions", lambda: VERSIONS)


def resumed(steps=7):
    config = Config()
    config.training.steps, config.checkpoint.resume = steps, "auto"
    return config


def test_a_runs_own_configuration_is_written_anew(tmp_path):
    RunDirectory(tmp_path / "run", Config())
    assert load_config(tmp_path / "run" / "config.yaml") == Config()
    assert examine_directory(tmp_path / "run", resumed()) == []
    RunDirectory(tmp_path / "run", resumed())
    assert load_config(tmp_path / "run" / "config.yaml") == resumed()
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == VERSIONS
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {".lock", "config.yaml", "environment.json"}


@pytest.mark.parametrize("changed", [False, True], ids=["written by hand", "a run's, changed by hand"])
def test_somebodys_own_configuration_is_left_alone(tmp_path, changed):
    own = tmp_path / "config.yaml"
    if changed:
        RunDirectory(tmp_path, resumed(3))
        own.write_text(own.read_text().replace("steps: 3", "steps: 4"))
    else:
        own.write_text("training:\n  steps: 4  # mine\n")
    text = own.read_text()
    for steps in (5, 6):
        (warning,) = examine_directory(tmp_path, resumed(steps))
        assert "config.yaml there was not written by a run, or was changed since" in warning
        assert warning.endswith("this run's configuration is config.resolved.yaml")
        RunDirectory(tmp_path, resumed(steps))
        assert own.read_text() == text
        assert load_config(tmp_path / "config.resolved.yaml") == resumed(steps)
    (tmp_path / "config.resolved.yaml").write_text("# mine, too\n{}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml and config\.resolved\.yaml there are not a run's"):
        RunDirectory(tmp_path, resumed())
    assert (tmp_path / "config.resolved.yaml").read_text() == "# mine, too\n{}\n"


def test_other_files_of_that_name_are_left_alone(tmp_path):
    (tmp_path / "environment.json").write_text('{"mine": 1}')
    with pytest.raises(
        ConfigError, match=r"environment\.json there is not a run's; choose another directory"
    ):
        RunDirectory(tmp_path, resumed())
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_directories_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "metrics.jsonl").touch()
    for name, words in (
        ("file", "is a file; name a directory"),
        ("file/run", "Not a directory; choose another"),
        ("x" * 300, "File name too long; choose another"),
        ("used", "already in use"),
    ):
        for use in (examine_directory, RunDirectory):
            with pytest.raises(ConfigError, match=words) as caught:
                use(tmp_path / name, Config())
            assert str(caught.value).startswith(f"run.dir = {tmp_path / name} ")
    assert examine_directory(tmp_path / "new", Config()) == [] and not (tmp_path / "new").exists()
    monkeypatch.setattr(run_directory, "ENDING_S", 0.2)
    held = RunDirectory(tmp_path / "run", Config())
    with pytest.raises(ConfigError, match="in use by a job that is still running"):
        RunDirectory(held.path, resumed())


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory.os, "replace", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device; choose another"):
        RunDirectory(tmp_path / "run", Config())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert examine_directory(tmp_path / "run", Config()) == []  # the same command works once there is room


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_directory.fcntl, "flock", no_locks)
    RunDirectory(tmp_path / "run", Config())
    assert (tmp_path / "run" / "config.yaml").exists()
    assert "its file system has no locks (Function not implemented)" in capsys.readouterr().err
