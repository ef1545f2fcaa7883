"""A damaged newest checkpoint is passed over: manifests written by hand, no torch. Whole runs are in test_faults.py."""

import json
import threading
import time

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.load import read_config
from hcmegatron.config.schema import resumes
from hcmegatron.training import manifest, resume, run_directory
from hcmegatron.training.run_directory import locked
from tests.training.resume_cases import made, refused, saved, start


def damage(path, how):
    if how == "manifest":
        (path / "manifest.json").write_text("{")
    elif how == "partial":
        (path / "manifest.json").unlink()
    else:
        (path / "__0_0.distcp").write_bytes(b"half")


@pytest.mark.parametrize("how", ["manifest", "partial", "file"])
def test_the_newest_whole_one_is_used_and_what_is_damaged_named(how, tmp_path):
    two, four, six = (saved(tmp_path, made(), step) for step in (2, 4, 6))
    damage(six, how)
    found = start(made(), tmp_path)
    assert found.path == four and list(found.damaged) == [six]
    assert found.says == (f"continuing from {four} after step 4, bit for bit",)
    damage(four, how)
    found = start(made(), tmp_path)
    assert found.path == two and list(found.damaged) == [six, four]

    aside = resume.set_aside(found)
    assert [path.name for path in sorted(two.parent.iterdir())] == [
        "step-00000002",
        "step-00000004.damaged",
        "step-00000006.damaged",
    ]
    first, second = aside.aside
    assert first.startswith(f"WARNING: checkpoint {six} is ")
    assert first.endswith("It is set aside as step-00000006.damaged, and the run goes back to step-00000002")
    assert f"checkpoint {four} is " in second
    assert resume.words(made(), tmp_path, aside) == (first, second, *found.says)
    assert start(made(), tmp_path).damaged == {}


def test_a_checksum_that_differs_counts_as_damage_when_it_is_told(tmp_path):
    two, four = (saved(tmp_path, made(), step) for step in (2, 4))
    found = resume.find_start(made(), tmp_path, "text", None, {four: "is corrupt: a bit"})
    assert found.path == two and found.damaged == {four: "is corrupt: a bit"}


def test_where_none_is_whole_the_run_stops_and_everything_stays(tmp_path):
    paths = [saved(tmp_path, made(), step) for step in (2, 4)]
    damage(paths[0], "partial")
    damage(paths[1], "file")
    error = refused(made(), tmp_path)
    assert (
        f"no checkpoint in {tmp_path}/checkpoints is whole, and none was changed: step-00000004 is" in error
    )
    assert "__0_0.distcp has 4 bytes, 7 were written; step-00000002 is partial" in error
    assert all(path.is_dir() for path in paths)


def test_a_name_for_what_is_damaged_is_free(tmp_path):
    path = tmp_path / "step-00000004"
    assert manifest.aside(path).name == "step-00000004.damaged"
    manifest.aside(path).mkdir()
    assert manifest.aside(path).name == "step-00000004.damaged-2"
    assert manifest.aside(path.with_suffix(".replaced")).name == "step-00000004.damaged-2"
    assert manifest.every(tmp_path) == []


def test_a_checkpoint_of_a_version_to_come_is_no_damage(tmp_path):
    saved(tmp_path, made(), 2)
    content = {"files": {}, "format": 9}
    text = json.dumps(content | {"blake2b": manifest._digest(content)})
    (saved(tmp_path, made(), 4) / "manifest.json").write_text(text)
    assert "is of format 9" in refused(made(), tmp_path)


def test_a_checkpoint_to_load_is_never_another_one(tmp_path):
    saved(tmp_path, made(), 2)
    damage(saved(tmp_path, made(), 4), "file")
    config = made(checkpoint={"resume": "never", "load": str(tmp_path)})
    assert "step-00000004 is corrupt" in refused(config, tmp_path / "new")


def test_required_refuses_where_there_is_nothing(tmp_path):
    required = made(checkpoint={"resume": "required"})
    assert refused(required, tmp_path) == (
        f"checkpoint.resume = required: there is no checkpoint in {tmp_path}/checkpoints; correct run.dir, or use "
        "checkpoint.resume=auto, which begins anew"
    )
    path = saved(tmp_path, required)
    assert start(required, tmp_path).path == path


@pytest.mark.parametrize(
    "written, meant",
    [("true", "auto"), ("false", "never"), ("auto", "auto"), ("never", "never"), ("required", "required")],
)
def test_the_older_spellings_are_kept(written, meant):
    config, _ = read_config(None, [f"--checkpoint.resume={written}", "--run.dir=x"])
    assert config.checkpoint.resume == meant and resumes(config) == (meant != "never")


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    path = saved(tmp_path, made())

    def forbidden(folder):
        assert folder == path.parent
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(resume.os, "listdir", forbidden)
    assert refused(made(), tmp_path).startswith(f"{path.parent} cannot be read: Permission denied")


def test_a_directory_is_one_jobs_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "ENDING_S", 0.2)
    with locked(tmp_path), pytest.raises(ConfigError, match="in use by a job that is still running"):
        locked(tmp_path)
    locked(tmp_path).close()


def test_a_killed_job_whose_last_write_is_still_under_way_is_waited_for(tmp_path):
    """Its lock goes with its last thread, which the disk may keep."""
    ending = locked(tmp_path)
    threading.Timer(0.3, ending.close).start()
    began = time.monotonic()
    locked(tmp_path).close()
    assert 0.2 < time.monotonic() - began < 5
