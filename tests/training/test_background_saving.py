"""Checkpoints that are written while training goes on hold what was there when they were begun."""

import re
import threading

import pytest
import torch

from hcmegatron.config import Config
from hcmegatron.training import manifest
from hcmegatron.training.checkpoint_writer import CheckpointWriter
from hcmegatron.training.on_every_rank import unwritable
from hcmegatron.training.shard_files import TensorShard
from hcmegatron.training.snapshot import Snapshot, at_once, in_background
from tests.ranks import observe_ranks, run_ranks
from tests.small_configs import tiny
from tests.training import background_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


def test_a_snapshot_is_a_copy_and_its_memory_is_used_again():
    held = torch.arange(12.0).view(3, 4)
    pieces = [TensorShard("a", held[:, 1:3], (3, 4), (0, 1)), TensorShard("a", held[:1], (4, 4), (3, 0))]
    snapshot = Snapshot()
    first = snapshot.take(pieces)
    held.zero_()
    assert first[0].data.tolist() == [[1, 2], [5, 6], [9, 10]] and first[1].data.tolist() == [[0, 1, 2, 3]]
    assert [piece.offset for piece in first] == [(0, 1), (3, 0)] and first[0].key == "a"
    # torch would write all of a storage that is larger than the tensor
    assert [piece.data.untyped_storage().nbytes() for piece in first] == [24, 16]
    again = snapshot.take(pieces)
    assert [piece.data.data_ptr() for piece in again] == [piece.data.data_ptr() for piece in first]
    assert again[0].data.sum() == 0


def test_a_copy_that_finds_no_memory_costs_the_save_and_not_the_run():
    piece = TensorShard("a", torch.zeros(1).expand(2**60), (2**60,), (0,))
    with pytest.raises(
        MemoryError, match=r"copy that saving keeps; checkpoint\.asynchronous=false"
    ) as raised:
        Snapshot().take([piece])
    assert unwritable(raised.value)


def test_a_folder_that_cannot_be_listed_is_said_and_costs_no_save(tmp_path, monkeypatch):
    def stale(saved, *_):
        raise OSError(116, "Stale file handle", str(saved.parent))

    monkeypatch.setattr(manifest, "outdated", stale)
    writer = CheckpointWriter(tmp_path, Config(), "text", {}, [], None, None)
    said = f"old checkpoints in {tmp_path} could not be listed, and stay: Stale file handle"
    assert writer._remove_older(tmp_path / manifest.name(4)) == [said]


def test_work_in_the_background_does_not_keep_its_caller_and_its_failure_is_for_who_asks():
    go_on = threading.Event()
    future = in_background(lambda: go_on.wait(10) and threading.current_thread())
    assert not future.done()
    go_on.set()
    assert future.result(10).daemon and future.result() is not threading.current_thread()
    assert at_once(threading.current_thread).result() is threading.current_thread()
    for begin in (at_once, in_background):
        with pytest.raises(ZeroDivisionError):
            begin(lambda: 1 / 0).result(10)


@pytest.mark.ranks
def test_what_is_written_later_is_what_was_there_at_the_save(text, tmp_path):
    """A save after every step, the next one waiting for it, one while a signal ends the run; and state that moves."""
    sections = {"parallel": {"pipeline": 1}, "training": {"steps": 6}}
    runs = {}
    for name, asynchronous in (("slow", True), ("plain", False)):
        saving = {"save_every": 1, "keep_last": 9, "asynchronous": asynchronous}
        config = tiny(text, tmp_path / name, checkpoint=saving, **sections)
        run_ranks(1, getattr(background_workers, name), config, 4, 2, **RUN)
        (runs[name],) = run_ranks(1, background_workers.contents, tmp_path / name / "checkpoints", **RUN)
    assert sorted(runs["slow"]) == [manifest.name(step) for step in (1, 2, 3, 4)]
    assert runs["slow"] == runs["plain"]
    assert len({str(sorted(state.items())) for state in runs["slow"].values()}) == 4
    said = (tmp_path / "slow/train.log").read_text()
    waits = re.findall(
        r"saving after step (\d) waited \d\.\d s for the checkpoint after step (\d) to be", said
    )
    assert waits == [("2", "1"), ("3", "2"), ("4", "3")]
    assert "stopped by SIGTERM after step 4; continue with checkpoint.resume=auto" in said
    assert "waited" not in (tmp_path / "plain/train.log").read_text()


@pytest.mark.ranks
def test_a_run_that_fails_completes_the_checkpoint_that_is_being_written(text, tmp_path):
    config = tiny(text, tmp_path / "run")
    outcomes = observe_ranks(2, background_workers.failing, config, 3, **RUN, grace=10.0)
    assert "RuntimeError: a mistake of the step" in outcomes[1].error and not outcomes[1].overtime
    (path,) = (tmp_path / "run/checkpoints").iterdir()
    assert path.name == manifest.name(2) and manifest.read(path).updates == 2
    manifest.verify(path, manifest.read(path))


@pytest.mark.ranks
def test_a_disk_that_is_slower_than_a_step_may_be_is_no_hang(tmp_path):
    said = run_ranks(
        2, background_workers.with_a_slow_disk, tmp_path, 1, 2.5, preload=RUN["preload"], timeout=60
    )
    assert said == [["saved"], ["saved"]]
