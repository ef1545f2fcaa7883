"""Manifests of every format: what is not as it was written is refused, and named."""

import errno
import json
import os

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.types import flatten
from hcmegatron.training import checksums, manifest
from hcmegatron.training.checksums import File
from hcmegatron.training.manifest import Progress
from hcmegatron.training.resume import RULE_OF, Rule
from tests.training.resume_cases import made, refused, saved, start


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
