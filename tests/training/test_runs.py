"""Whole runs: cut off and resumed, refused, kept from numbers that are not finite, on a full disk."""

import json
import shutil
from pathlib import Path

import pytest

from hcmegatron.training import manifest
from tests.ranks import observe_ranks, run_ranks
from tests.small_configs import tiny
from tests.training import workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """An uninterrupted run: its configuration's directory and every rank's hashes by step."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, run_ranks(2, workers.run, tiny(text, directory, checkpoint={"keep_last": 1}), **RUN)


def error_of(config, ranks=2):
    outcomes = observe_ranks(ranks, workers.run, config, **RUN)
    assert all(outcome.exit_code != 0 for outcome in outcomes)
    lines = outcomes[0].error.strip().splitlines()
    assert any(kind in lines[-1] for kind in ("ConfigError: ", "Damaged: ")), outcomes[0].error
    return lines[-1]


@pytest.mark.ranks
@pytest.mark.parametrize("cut", [{"kill_at": 1}, {"kill_at": 4}, {"kill_in_save": 4}], ids=str)
def test_killed_and_resumed_ends_with_the_same_bits(cut, text, whole, tmp_path):
    config = tiny(text, tmp_path / "run")
    outcomes = observe_ranks(2, workers.run, config, kwargs=cut, **RUN)
    assert any(outcome.exit_code != 0 for outcome in outcomes), "the run was to be cut off"
    config.checkpoint.resume = "auto"
    resumed = run_ranks(2, workers.run, config, **RUN)
    for ours, reference in zip(resumed, whole[1], strict=True):
        assert ours[4] == reference[4]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [s for s in steps if s]
    assert sorted(set(trained)) == [1, 2, 3, 4]
    assert not list((tmp_path / "run/checkpoints").glob("*.partial"))
    said = (tmp_path / "run/train.log").read_text()
    first_start = cut == {"kill_at": 1}
    assert ("warning: there is no checkpoint in" in said) == first_start
    assert ("after step 2, bit for bit" in said) == (not first_start)
    left = tmp_path / "run/checkpoints/step-00000004.partial"
    assert (f"removed {left}, left by a run that was cut off" in said) == ("kill_in_save" in cut)


@pytest.mark.ranks
def test_only_the_newest_checkpoints_are_kept(whole):
    assert [path.name for path in sorted((whole[0] / "checkpoints").iterdir())] == [
        "step-00000004",
    ]


@pytest.mark.ranks
def test_what_cannot_be_used_is_refused_by_name(text, whole, tmp_path):
    directory, _ = whole
    before = sorted(str(path) for path in directory.rglob("*"))
    assert "already in use" in error_of(tiny(text, directory))
    assert before == sorted(str(path) for path in directory.rglob("*"))

    copy = tmp_path / "copy"
    newest = copy / "checkpoints/step-00000004"
    shutil.copytree(directory, copy)

    def load(**sections):
        longer = {"training": {"steps": 6}, "checkpoint": {"load": str(copy)}}
        return tiny(text, tmp_path / "new", **longer, **sections)

    other = error_of(load(model={"hidden_size": 32}))
    assert "another architecture: model.hidden_size = 16 there, 32 here" in other
    assert "connection.kind = mhc there, shc here" in error_of(load(connection={"kind": "shc", "n": 2}))

    victim = max((p for p in newest.glob("*.distcp")), key=lambda p: p.stat().st_size)
    whole_bytes = victim.read_bytes()
    victim.write_bytes(whole_bytes[: len(whole_bytes) // 2])
    assert f"{victim.name} has" in (found := error_of(load())) and "corrupt" in found
    flipped = bytearray(whole_bytes)
    flipped[len(flipped) // 2] ^= 1
    victim.write_bytes(flipped)
    assert f"is corrupt: {victim.name} is not as it was written" in error_of(load())
    (newest / "manifest.json").write_text("{")
    assert "manifest.json is not JSON" in error_of(load())
    (newest / "manifest.json").unlink()
    assert "partial" in error_of(load())
    assert "there is no such directory" in error_of(
        tiny(text, tmp_path / "new", checkpoint={"load": "/nowhere"})
    )
    assert not Path(tmp_path / "new/checkpoints").exists()


@pytest.mark.ranks
def test_non_finite_steps_never_reach_the_weights(text, tmp_path):
    once = run_ranks(2, workers.poisoned, tiny(text, tmp_path / "once"), [3], **RUN)
    for rank in once:
        assert rank["moved"] == [True, True, False, True] and rank["ended"] == [""]
    assert "skipped: loss" in (tmp_path / "once/train.log").read_text()
    several = tiny(text, tmp_path / "several", training={"max_bad_steps": 2})
    for rank in run_ranks(2, workers.poisoned, several, [2, 3], **RUN):
        assert rank["moved"] == [True, False, False]
        assert "2 non-finite steps in a row; the last was step 3, sequences 4 to 5" in rank["ended"][0]


@pytest.mark.ranks
def test_skipped_steps_leave_healthy_checkpoints_alone(text, tmp_path):
    """None is saved after a skipped step; where the run ends with one, it is saved as done, beside the others."""
    ending = tiny(text, tmp_path / "ending", checkpoint={"save_every": 1, "keep_last": 2})
    run_ranks(2, workers.poisoned, ending, [3, 4], **RUN)
    names = [path.name for path in sorted((tmp_path / "ending/checkpoints").iterdir())]
    assert names == ["step-00000001", "step-00000002", "step-00000004"]
    last = manifest.read(tmp_path / "ending/checkpoints/step-00000004")
    assert (last.step, last.samples, last.updates) == (4, 8, 2)

    stopped = tiny(text, tmp_path / "stopped", checkpoint={"save_every": 0, "keep_last": 1})
    run_ranks(2, workers.poisoned, stopped, [3], kwargs={"stop_at": 3}, **RUN)
    newest = tmp_path / "stopped/checkpoints/step-00000002"
    assert list(newest.parent.iterdir()) == [newest]
    saved = manifest.read(newest)
    assert (saved.step, saved.samples, saved.updates) == (2, 4, 2)
    said = (tmp_path / "stopped/train.log").read_text()
    assert "stopped by SIGTERM after step 3, with the checkpoint after step 2 as its newest" in said


@pytest.mark.ranks
def test_another_batch_size_goes_on_with_the_next_sample(text, tmp_path):
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 1}, training={"steps": 2, "global_batch": 4})
    config.checkpoint.save_every = 0
    assert run_ranks(1, workers.samples, config, **RUN) == [list(range(8))]
    config.checkpoint.resume = "auto"
    config.training.steps, config.training.global_batch = 4, 2
    assert run_ranks(1, workers.samples, config, **RUN) == [[8, 9, 10, 11]]
    assert manifest.read(tmp_path / "run/checkpoints/step-00000004").samples == 12
    said = (tmp_path / "run/train.log").read_text()
    assert "after step 2, with changes" in said and "training.global_batch 4 -> 2" in said


@pytest.mark.ranks
def test_a_checkpoint_that_one_rank_does_not_see_ends_all(text, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    config = tiny(text, tmp_path / "run", checkpoint={"resume": "auto"}, training={"steps": 5})
    for outcome in observe_ranks(2, workers.unseen, config, **RUN):
        assert outcome.exit_code != 0 and not outcome.overtime
        assert "cannot be read: No such file or directory" in outcome.error
        assert "every rank has to see it" in outcome.error


@pytest.mark.ranks
def test_a_finished_run_says_so_and_trains_nothing(text, whole):
    directory, _ = whole
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    config = tiny(text, directory, checkpoint={"resume": "auto"})
    outcomes = observe_ranks(2, workers.run, config, **RUN)
    assert [(outcome.exit_code, outcome.result) for outcome in outcomes] == [(0, {}), (0, {})]
    assert "this run is finished" in outcomes[0].output and "raise training.steps" in outcomes[0].output
    assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.ranks
def test_a_full_disk_costs_one_checkpoint_and_the_last_one_the_exit_status(text, tmp_path):
    config = tiny(text, tmp_path / "run", checkpoint={"save_every": 1})
    for ended in run_ranks(2, workers.full_disk, config, [2, 4], **RUN):
        assert "the checkpoint after step 4 could not be saved: File too large" in ended and "\n" not in ended
    said = (tmp_path / "run/train.log").read_text()
    assert "warning: the checkpoint after step 2 could not be saved: File too large" in said
    names = [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())]
    assert names == ["step-00000001", "step-00000003"]
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if line["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.ranks
def test_a_mistake_of_the_program_while_saving_keeps_its_traceback(text, tmp_path):
    """On the rank that made it; the other one ends with it, and no line says that a disk was at fault."""
    first, second = observe_ranks(2, workers.mistaken_save, tiny(text, tmp_path / "run"), **RUN)
    assert not first.overtime and not second.overtime
    assert "AttributeError: 'NoneType' object has no attribute 'missing'" in second.error
    assert "None.missing" in second.error and "in wrong" in second.error
    assert "PeerFailed: rank 1 failed: AttributeError" in first.error
    assert "could not be saved" not in (tmp_path / "run/train.log").read_text()


@pytest.mark.ranks
def test_a_run_directory_without_room_is_the_same_line_on_every_rank(text, tmp_path):
    for outcome in observe_ranks(2, workers.unwritable_metrics, tiny(text, tmp_path / "run"), **RUN):
        assert outcome.exit_code == 1 and not outcome.overtime
        assert "ConfigError" in outcome.error.splitlines()[-1]
        assert "metrics.jsonl cannot be written: No space left on device; make room" in outcome.error


@pytest.mark.ranks
def test_a_checkpoint_is_saved_before_validation_can_fail(text, tmp_path):
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 1}, training={"steps": 1})
    (outcome,) = observe_ranks(1, workers.failing_validation, config, **RUN)
    assert "no validation" in outcome.error
    assert manifest.read(tmp_path / "run/checkpoints/step-00000001").step == 1


@pytest.mark.ranks
def test_bf16_under_a_v_resumes_with_the_same_bits(text, tmp_path):
    """fp32 connection parameters beside bf16 weights, bf16 messages, and a chunk with the head on the first rank."""
    half = {
        "training": {"dtype": "bf16", "steps": 2, "global_batch": 4},
        "parallel": {"schedule": "dualpipev"},
    }
    deep = {"model": {"layers": 4}, "moe": {"ffn_hidden_size": 16}, "checkpoint": {"save_every": 1}}
    whole = run_ranks(2, workers.run, tiny(text, tmp_path / "whole", **half, **deep), **RUN)
    config = tiny(text, tmp_path / "cut", **half, **deep)
    observe_ranks(2, workers.run, config, kwargs={"kill_at": 2}, **RUN)
    config.checkpoint.resume = "auto"
    for ours, reference in zip(run_ranks(2, workers.run, config, **RUN), whole, strict=True):
        assert ours[2] == reference[2]


@pytest.mark.ranks
def test_a_block_of_the_longest_stage_trains_beside_shorter_stages(text, tmp_path):
    """Of three layers one rank has two, four sub-layers that are one block; the other has one layer."""
    config = tiny(text, tmp_path / "run", model={"layers": 3}, parallel={"schedule": "1f1b"})
    config.recompute.mode, config.recompute.block_length, config.training.steps = "block", "4", 1
    assert all(list(saved) == [1] for saved in run_ranks(2, workers.run, config, **RUN))


@pytest.mark.ranks
def test_a_branch_from_a_trunks_checkpoint_is_the_shorter_run_bit_for_bit(text, tmp_path):
    """Warm-up, stable, decay: until the decay, a run of four steps is one of three."""
    decay = {"schedule": "wsd", "decay_steps": 1, "warmup_steps": 1}

    def trained(name, steps, **saving):
        config = tiny(
            text,
            tmp_path / name,
            training={"steps": steps},
            optimizer=decay,
            checkpoint={"save_every": 0, **saving},
        )
        return run_ranks(2, workers.run, config, **RUN)

    trunk = trained("trunk", 4, keep_at=[2], keep_last=1)
    short = trained("short", 3)
    branch = trained("branch", 3, load=str(tmp_path / "trunk/checkpoints/step-00000002"))
    kept = sorted(path.name for path in (tmp_path / "trunk/checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    for of_trunk, of_branch, of_short in zip(trunk, branch, short, strict=True):
        assert of_branch[3] == of_short[3] != of_trunk[4]
