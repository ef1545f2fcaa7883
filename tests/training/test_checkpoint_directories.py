"""The directories of checkpoints: the newest, the outdated, and what a killed run leaves; never none that is whole."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.training import manifest
from hcmegatron.training.checksums import File
from tests.training.resume_cases import made, saved, start


def test_the_newest_is_a_directory_of_the_highest_step(tmp_path):
    for step in (2, 10, 4):
        saved(tmp_path, made(), step)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000011").write_text("a file")
    (folder / "step-00000012.partial").mkdir()
    assert [path.name for path in manifest.every(folder)] == [manifest.name(step) for step in (2, 4, 10)]
    assert manifest.newest(tmp_path) == manifest.newest(folder) == folder / "step-00000010"


def test_only_checkpoints_are_removed_as_outdated(tmp_path):
    paths = [saved(tmp_path, made(), step) for step in (2, 4, 6, 8)]
    own = tmp_path / "checkpoints/step-00000003"
    own.mkdir()
    (own / "notes.txt").write_text("somebody's own")
    assert manifest.outdated(paths[2], 1) == paths[:2]
    assert manifest.outdated(paths[2], 2) == paths[:1]
    assert manifest.outdated(paths[3], 9) == []
    assert manifest.outdated(paths[3], 1, [2]) == paths[1:3]
    with pytest.raises(ConfigError, match=r"step-00000003 .* move it away to use the one before"):
        manifest.read(own)


def test_a_checkpoint_that_is_saved_again_is_there_at_every_moment(tmp_path, monkeypatch):
    path = saved(tmp_path, made())
    again = saved(tmp_path / "again", made(), updates=3)
    partial = path.with_suffix(".partial")
    again.rename(partial)
    seen = []
    usual = Path.rename

    def watched(self, target):
        seen.append(manifest.read(manifest.newest(tmp_path)).updates)
        done = usual(self, target)
        seen.append(manifest.read(manifest.newest(tmp_path)).updates)
        return done

    monkeypatch.setattr(Path, "rename", watched)
    manifest.publish(partial, path)
    assert seen == [4, 4, 4, 3] and [left.name for left in path.parent.iterdir()] == [path.name]


def test_a_file_with_a_checkpoints_name_stays(tmp_path):
    (tmp_path / "step-00000004.partial").mkdir()
    (tmp_path / "step-00000004").write_text("mine")
    with pytest.raises(FileExistsError, match="a file has its name"):
        manifest.publish(tmp_path / "step-00000004.partial", tmp_path / "step-00000004")
    assert (tmp_path / "step-00000004").read_text() == "mine"


def test_what_a_killed_run_left_is_removed_and_what_is_whole_kept(tmp_path):
    path = saved(tmp_path, made())
    path.with_suffix(".partial").mkdir()
    path.rename(path.with_suffix(".replaced"))  # killed between two renames
    said = manifest.tidy(path.parent)
    assert said == [f"removed {path.with_suffix('.partial')}, left by a run that was cut off while saving"]
    whole = path.with_suffix(".replaced")  # the run has found its start there before it tidies
    assert list(path.parent.iterdir()) == [whole] and start(made(), tmp_path).path == whole
    saved(tmp_path / "again", made()).rename(path)
    manifest.tidy(path.parent)
    assert list(path.parent.iterdir()) == [path]
    assert json.loads((path / "manifest.json").read_text())["format"] == 4
    assert manifest.read(path).files == {"__0_0.distcp": File(7, ("1ad27358",))}


def test_a_checkpoint_that_is_half_removed_is_none_any_more(tmp_path, monkeypatch):
    first, second = (saved(tmp_path, made(), step) for step in (2, 4))
    monkeypatch.setattr(
        shutil, "rmtree", lambda path: os.unlink(path / "__0_0.distcp")
    )  # killed after one file
    manifest.remove(first)
    monkeypatch.undo()
    assert manifest.every(tmp_path / "checkpoints") == [second]
    assert manifest.tidy(tmp_path / "checkpoints")[0].startswith(
        f"removed {first.with_suffix('.partial')}, left by"
    )
    assert list((tmp_path / "checkpoints").iterdir()) == [second]
