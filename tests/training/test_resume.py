"""Where a run starts from and what may have changed: manifests written by hand, no torch."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import get_args

import pytest

from hcmegatron.config import Config, ConfigError
from hcmegatron.config.types import flatten, leaves
from hcmegatron.training import checksums, manifest, resume
from hcmegatron.training.checksums import File
from hcmegatron.training.manifest import Progress
from hcmegatron.training.resume import RULE_OF, Rule
from tests.training.resume_cases import HERE, made, refused, saved, start


def test_every_setting_has_a_rule():
    assert RULE_OF.keys() == leaves().keys()


def test_what_is_equal_is_continued_bit_for_bit(tmp_path):
    path = saved(tmp_path, made())
    harmless = made(
        training={"log_every": 7, "eval_every": 3}, checkpoint={"save_every": 2}, run={"tensorboard": False}
    )
    for config in (made(), harmless):
        found = start(config, tmp_path)
        assert found.says == (f"continuing from {path} after step 4, bit for bit",)
        assert found.position == Progress(4, 64)


def test_a_run_that_begins_with_another_ones_checkpoint_goes_on_from_its_own(tmp_path):
    theirs = saved(tmp_path / "theirs", made(training={"steps": 9}))
    branch = made(training={"steps": 8}, checkpoint={"load": str(theirs)})
    begun = start(branch, tmp_path / "own")
    assert begun.path == theirs and begun.says[0].endswith("with changes")
    own = saved(tmp_path / "own", branch, step=6)
    assert start(branch, tmp_path / "own").says == (f"continuing from {own} after step 6, bit for bit",)
    (own / "__0_0.distcp").unlink()  # never silently back to the other one
    assert "no checkpoint in" in refused(branch, tmp_path / "own")
    branch.checkpoint.resume = "never"
    assert start(branch, tmp_path / "own").path == theirs


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, str: lambda v: "other"}
OTHER |= {list: lambda v: [*v, 0.95], type(None): lambda v: 2}


def test_another_tokenizer_is_refused_by_its_fingerprint(tmp_path):
    saved(tmp_path, made(), environment={**HERE, "tokenizer": "0123456789abcdef"})
    line = (
        "of another tokenizer: its fingerprint is 0123456789abcdef there, and byte of data.tokenizer = byte"
    )
    for config in (made(), made(checkpoint={"resume": "never", "load": str(tmp_path)})):
        assert line in refused(config, tmp_path)
    saved(
        tmp_path / "same",
        made(data={"tokenizer": "elsewhere.json"}),
        environment={**HERE, "tokenizer": "byte"},
    )
    assert start(made(), tmp_path / "same").says[0].endswith("bit for bit")


@pytest.mark.parametrize("key", [key for key in leaves() if key != "data.tokenizer"])
def test_another_value_of_any_setting_is_refused_or_said(key, tmp_path):
    """Nothing that the numbers depend on is taken over without a word, and nothing given is ignored without one."""
    config = made()
    config.optimizer.schedule, config.moe.experts, config.moe.first_dense = "step", 4, 1
    config.connection.kind, config.data.paths, config.recompute.mode = "mhc", ["x"], "block"
    saved(tmp_path, config)
    section, _, leaf = key.rpartition(".")
    owner = getattr(config, section) if section else config
    before = getattr(owner, leaf)
    choices = [choice for choice in get_args(leaves()[key]) if isinstance(choice, str) and choice != before]
    setattr(owner, leaf, choices[0] if choices else OTHER[type(before)](before))
    if key.startswith("checkpoint."):
        config.checkpoint.resume, config.checkpoint.load = "auto", None
    rule, idle = RULE_OF[key], key in resume.ineffective(config)
    if rule is Rule.ARCHITECTURE and not idle:
        assert f"of another architecture: {key} = " in refused(config, tmp_path)
    elif rule is Rule.STATE:
        assert f"of another optimizer: {key} = " in refused(config, tmp_path)
    elif rule is Rule.DATA:
        assert f"of a run on other data: {key} = " in refused(config, tmp_path)
    else:
        said = "\n".join(start(config, tmp_path).says)
        heard = rule in (Rule.APPLIED, Rule.ROUNDING, Rule.BEGINNING) and not idle
        assert (f"{key} " in said) == heard
        assert ("bit for bit" in said) == (rule not in (Rule.APPLIED, Rule.ROUNDING) or idle)
        assert ("no more than rounding: " in said) == (rule is Rule.ROUNDING and not idle)
        assert ("no effect" in said) == (rule is Rule.BEGINNING and not idle)


def test_values_are_written_as_in_yaml(tmp_path):
    saved(tmp_path, made(parallel={"distributed_optimizer": None}))
    changed = made(optimizer={"lr": 0.001}, parallel={"distributed_optimizer": True})
    assert start(changed, tmp_path).says[1:] == (
        "the data go on in the same order, at sample 64",
        "changed: optimizer.lr 0.003 -> 0.001",
        "changed, by no more than rounding: parallel.distributed_optimizer null -> true",
    )
    assert "model.query_groups = null there, 2 here" in refused(made(model={"query_groups": 2}), tmp_path)


def test_the_length_of_a_run_at_a_constant_rate_changes_no_number(tmp_path):
    constant = {"schedule": "constant"}
    saved(tmp_path / "constant", made(optimizer=constant))
    longer = {"steps": 300}
    assert "bit for bit" in start(made(optimizer=constant, training=longer), tmp_path / "constant").says[0]
    saved(tmp_path / "cosine", made())
    assert "changed: training.steps 200 -> 300" in start(made(training=longer), tmp_path / "cosine").says


def test_other_ranks_and_versions_are_said(tmp_path):
    saved(tmp_path, made())
    found = resume.find_start(made(), tmp_path, "text", {"ranks": 4, "torch": "2.14.0"})
    assert found.says[0].endswith("with changes")
    assert found.says[2:] == (
        "changed: torch 2.13.0 -> 2.14.0",
        "changed, by no more than rounding: ranks 2 -> 4",
    )
    found = resume.find_start(made(), tmp_path, "text", {"ranks": 4, "torch": "2.13.0", "triton": "3.5"})
    assert found.says[0].endswith("after step 4, with the same numbers but for rounding")
    assert len(found.says) == 2  # and what the checkpoint's version did not know of is not compared


def test_what_kernels_have_come_to_is_compared_and_not_what_was_asked_for(tmp_path):
    path = saved(tmp_path, made(), environment=HERE | {"kernels": "torch"})
    asked = made()
    asked.kernels = "torch"
    found = start(asked, tmp_path, environment=HERE | {"kernels": "torch"})
    assert found.says == (f"continuing from {path} after step 4, bit for bit",)
    found = start(made(), tmp_path, environment=HERE | {"kernels": "triton"})
    assert found.says[1:] == ("changed, by no more than rounding: kernels torch -> triton",)
    dropping = made(model={"hidden_dropout": 0.1})
    said = start(dropping, tmp_path, environment=HERE | {"kernels": "triton"}).says
    assert "changed: model.hidden_dropout 0.0 -> 0.1, kernels torch -> triton" in said


def test_masks_and_a_loss_over_micro_batches_depend_on_them(tmp_path):
    experts = {"experts": 4, "first_dense": 1}
    saved(tmp_path, made(moe=experts))
    smaller = made(moe=experts, training={"micro_batch": 2})
    assert (
        start(smaller, tmp_path).says[1] == "changed, by no more than rounding: training.micro_batch 4 -> 2"
    )
    dropped = made(moe=experts, training={"micro_batch": 2}, model={"attention_dropout": 0.1})
    dropped.parallel.tensor = 2
    assert (
        "changed: model.attention_dropout 0.0 -> 0.1, parallel.tensor 1 -> 2, training.micro_batch 4 -> 2"
        in start(dropped, tmp_path).says
    )
    balanced = made(moe={**experts, "aux_loss": 0.1}, training={"micro_batch": 2})
    assert "changed: moe.aux_loss 0.0 -> 0.1, training.micro_batch 4 -> 2" in start(balanced, tmp_path).says


def test_other_data_are_refused_where_the_run_goes_on_and_begun_anew_by_a_new_one(tmp_path):
    path = saved(tmp_path, made())
    error = refused(made(), tmp_path, text="grown")
    assert "the text's fingerprint is text there, grown here" in error
    assert f"checkpoint.load={path} and another run.dir" in error
    new = made(checkpoint={"resume": "never", "load": str(tmp_path)}, data={"seed": 7})
    found = start(new, tmp_path / "new")
    assert found.position == Progress(4, 0)
    assert found.says[1] == "the data begin anew, at their first sample: data.seed = 1234 there, 7 here"
    moved = made(data={"paths": ["elsewhere"]})
    assert start(moved, tmp_path).says[0].endswith("bit for bit")


def test_a_finished_run_and_one_that_is_to_be_shorter(tmp_path):
    path = saved(tmp_path, made(training={"steps": 4}))
    done = start(made(training={"steps": 4}), tmp_path)
    assert resume.finished(done) == (
        f"this run is finished, and nothing is left to do: {path} is after step 4, which is training.steps; raise "
        "training.steps to train on",
    )
    for config in (
        made(training={"steps": 3}),
        made(training={"steps": 4}, checkpoint={"resume": "never", "load": str(path)}),
    ):
        assert f"training.steps = {config.training.steps} leaves nothing to train" in refused(
            config, tmp_path
        )


def test_resuming_before_the_first_checkpoint_begins_and_says_so(tmp_path):
    """What a job that is queued again asks for, and what a mistyped directory looks like."""
    for directory in (tmp_path / "missing", tmp_path):
        assert start(made(), directory) is None
        (said,) = resume.words(made(), directory, None)
        assert said.startswith(f"warning: there is no checkpoint in {directory} yet")
    assert resume.words(Config(), tmp_path, None) == ()


@pytest.mark.parametrize(
    "content, message",
    [
        ("{}", "is not a manifest"),
        ("[]", "is not a manifest"),
        ("null", "is not a manifest"),
        ("[" * 10**5, "is not JSON"),
        (b"\xff", "is not JSON"),
        ('{"files": {}, "step": 4}', "is not as it was written"),
        ('{"files": {}, "format": 2}', "is not as it was written"),
        ('{"files": {}, "format": 4}', "is not as it was written"),
    ],
)
def test_what_is_no_manifest_is_refused(content, message, tmp_path):
    path = saved(tmp_path, made())
    (path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(made(), tmp_path)


def test_the_first_format_is_continued_with_a_word_on_what_it_does_not_say(tmp_path):
    config = made(training={"global_batch": 8})
    path = saved(tmp_path, config)
    architecture = {key: value for key, value in flatten(config).items() if RULE_OF[key] is Rule.ARCHITECTURE}
    layout = {"world_size": 2, **vars(config.parallel), "distributed_optimizer": False}
    first = {"step": 4, "architecture": architecture, "layout": layout, "files": {"__0_0.distcp": 7}}
    (path / "manifest.json").write_text(json.dumps(first))
    found = start(config, tmp_path)
    assert found.position == Progress(4, 32) and found.manifest.updates == 4
    assert found.says[0].endswith("after step 4, with changes")
    assert "is of format 1: it has no checksums to verify" in found.says[1] and len(found.says) == 2
    manifest.verify(path, found.manifest)
    assert "model.layers = 4 there, 5 here" in refused(made(model={"layers": 5}), tmp_path)
    (path / "__0_0.distcp").write_bytes(b"weight")
    assert "__0_0.distcp has 6 bytes, 7 were written" in refused(config, tmp_path)


def test_a_changed_manifest_and_files_of_another_size_are_refused(tmp_path):
    path = saved(tmp_path, made())
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"samples": 64', '"samples": 65'))
    assert "manifest.json is not as it was written" in refused(made(), tmp_path)
    (path / "manifest.json").write_text(text)
    (path / "__0_0.distcp").write_bytes(b"weight")
    assert "__0_0.distcp has 6 bytes, 7 were written" in refused(made(), tmp_path)
    (path / "__0_0.distcp").unlink()
    assert "__0_0.distcp is missing" in refused(made(), tmp_path)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path):
    path = saved(tmp_path, made())
    written = manifest.read(path)
    assert written.files["__0_0.distcp"].bytes == 7
    manifest.verify(path, written)
    (path / "__0_0.distcp").write_bytes(b"weightr")
    with pytest.raises(ConfigError, match=r"is not as it was written .* differs"):
        manifest.verify(path, written)
    (path / "__0_0.distcp").unlink()
    with pytest.raises(ConfigError, match="No such file or directory; every rank has to see it"):
        manifest.verify(path, written)


def test_every_block_has_a_checksum_and_the_damaged_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", 5)
    (tmp_path / "a").write_bytes(b"123456789")
    (tmp_path / "empty").write_bytes(b"")
    found = checksums.summed(tmp_path, ["a", "empty"])
    assert found == {"a": File(9, ("cbf53a1c", "9dbabf87")), "empty": File(0, ())}
    assert checksums.differing(tmp_path, found) is None
    (tmp_path / "a").write_bytes(b"123456788")
    said = "a is not as it was written (the checksum of bytes 5 to 9 differs)"
    assert checksums.differing(tmp_path, found) == said
    assert checksums.differing(tmp_path, found, slice(0, None, 2)) is None  # the other rank's block
    assert checksums.differing(tmp_path, found, slice(1, None, 2)) == said


def test_the_second_format_is_verified_by_its_own_checksums(tmp_path):
    path = saved(tmp_path, made())
    content = json.loads((path / "manifest.json").read_text())
    del content["blake2b"]
    whole = "873ac3c6df553eaa62331fd4ff9b521a"
    content |= {"format": 2, "files": {"__0_0.distcp": {"bytes": 7, "blake2b": whole}}}
    (path / "manifest.json").write_text(json.dumps({**content, "blake2b": manifest._digest(content)}))
    found = start(made(), tmp_path)
    assert found.says == (f"continuing from {path} after step 4, bit for bit",)
    manifest.verify(path, found.manifest)
    (path / "__0_0.distcp").write_bytes(b"weightr")
    with pytest.raises(ConfigError, match=r"is not as it was written .* differs"):
        manifest.verify(path, found.manifest)


def test_a_format_to_come_is_refused_and_one_that_lost_a_bit_is_damage(tmp_path):
    path = saved(tmp_path, made())
    content = json.loads((path / "manifest.json").read_text())
    for version in (0, 5, 6):  # each differs from 4 in one bit
        (path / "manifest.json").write_text(json.dumps(content | {"format": version}))
        assert "is corrupt: manifest.json is not as it was written" in refused(made(), tmp_path)
    del content["blake2b"]
    content["format"] = 7
    (path / "manifest.json").write_text(json.dumps(content | {"blake2b": manifest._digest(content)}))
    assert "is of format 7, and this program reads formats 1 to 4; continue it" in refused(made(), tmp_path)


@pytest.mark.parametrize(
    "files", [{"../x": {"bytes": 1}}, {"x": {"bytes": 1, "crc32": []}}, {"x": {"size": 1}}, {"x": 1}]
)
def test_a_manifest_that_somebody_made_up_is_refused(files, tmp_path):
    path = saved(tmp_path, made())
    content = json.loads((path / "manifest.json").read_text()) | {"files": files}
    del content["blake2b"]
    (path / "manifest.json").write_text(json.dumps({**content, "blake2b": manifest._digest(content)}))
    assert "is corrupt: manifest.json" in refused(made(), tmp_path)


def test_places_of_checkpoints(tmp_path):
    assert "there is no such directory" in refused(load(tmp_path / "missing"), tmp_path)
    (tmp_path / "file").write_text("")
    assert "is no directory" in refused(load(tmp_path / "file"), tmp_path)
    (tmp_path / "empty").mkdir()
    assert "it has no manifest.json" in refused(load(tmp_path / "empty"), tmp_path)
    (tmp_path / "checkpoints").write_text("")
    assert "is a file, where checkpoints would be" in refused(made(), tmp_path)


def load(path):
    return made(checkpoint={"resume": "never", "load": str(path)})


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


def test_a_path_that_no_file_can_have_is_one_line(tmp_path):
    words = refused(made(checkpoint={"resume": "never", "load": "x" * 300}), tmp_path)
    assert words.startswith("checkpoint.load = xxx") and words.endswith(
        "make it readable, or correct the path"
    )


@pytest.mark.parametrize("layout", [{}, [], {"world_size": 2}, 3])
def test_a_damaged_manifest_of_the_first_format(layout, tmp_path):
    path = saved(tmp_path, made())
    content = {"step": 4, "architecture": {}, "layout": layout, "files": {}}
    (path / manifest.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(manifest.Damaged, match="is not a manifest"):
        manifest.read(path)


@pytest.mark.parametrize("change", [{"config": 3}, {"environment": "x"}, {"step": "4"}])
def test_a_manifest_that_somebody_made_up(change, tmp_path):
    path = saved(tmp_path, made())
    content = json.loads((path / manifest.MANIFEST).read_text()) | change
    content.pop("blake2b")
    content["blake2b"] = manifest._digest(content)
    (path / manifest.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(manifest.Damaged, match="is not a manifest"):
        manifest.read(path)


@pytest.mark.parametrize(
    "number, damaged",
    [(errno.EIO, True), (errno.EACCES, True), (errno.EMFILE, False), (errno.ETIMEDOUT, False)],
)
def test_what_cannot_be_read_for_a_moment_is_not_damaged(number, damaged, tmp_path):
    error = manifest._unreadable(tmp_path, OSError(number, os.strerror(number), "x"))
    assert isinstance(error, manifest.Damaged) == damaged
    assert damaged or str(error).endswith("; try again")
