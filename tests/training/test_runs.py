"""Whole runs: cut off and resumed, refused, and kept from numbers that are not finite."""

import json
import shutil
from pathlib import Path

import pytest

from tests.ranks import observe_ranks, run_ranks
from tests.training.workers import tiny

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
TARGET = "tests.training.workers:"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """An uninterrupted run: its configuration's directory and every rank's hashes by step."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, run_ranks(2, TARGET + "run", tiny(text, directory, checkpoint={"keep_last": 1}), **RUN)


def error_of(config, ranks=2):
    outcomes = observe_ranks(ranks, TARGET + "run", config, **RUN)
    assert all(outcome.exit_code != 0 for outcome in outcomes)
    lines = outcomes[0].error.strip().splitlines()
    assert "ConfigError" in lines[-1], outcomes[0].error
    return lines[-1]


@pytest.mark.ranks
@pytest.mark.parametrize("cut", [{"kill_at": 1}, {"kill_at": 4}, {"kill_in_save": 4}], ids=str)
def test_killed_and_resumed_ends_with_the_same_bits(cut, text, whole, tmp_path):
    config = tiny(text, tmp_path / "run")
    outcomes = observe_ranks(2, TARGET + "run", config, kwargs=cut, **RUN)
    assert any(outcome.exit_code != 0 for outcome in outcomes), "the run was to be cut off"
    config.checkpoint.resume = True
    resumed = run_ranks(2, TARGET + "run", config, **RUN)
    for ours, reference in zip(resumed, whole[1], strict=True):
        assert ours[4] == reference[4]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [s for s in steps if s]
    assert sorted(set(trained)) == [1, 2, 3, 4]
    assert not list((tmp_path / "run/checkpoints").glob("*.partial"))


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
    victim.write_bytes(b"\0" * len(whole_bytes))
    assert "corrupt" in error_of(load())
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
    once = run_ranks(2, TARGET + "poisoned", tiny(text, tmp_path / "once"), [3], **RUN)
    for rank in once:
        assert rank["moved"] == [True, True, False, True] and rank["ended"] == [""]
    assert "skipped: loss" in (tmp_path / "once/train.log").read_text()
    several = tiny(text, tmp_path / "several", training={"max_bad_steps": 2})
    for rank in run_ranks(2, TARGET + "poisoned", several, [2, 3], **RUN):
        assert rank["moved"] == [True, False, False]
        assert "2 non-finite steps in a row; the last was step 3, sequences 4 to 5" in rank["ended"][0]


@pytest.mark.ranks
def test_bf16_under_a_v_resumes_with_the_same_bits(text, tmp_path):
    """fp32 connection parameters beside bf16 weights, bf16 messages, and a chunk with the head on the first rank."""
    half = {
        "training": {"dtype": "bf16", "steps": 2, "global_batch": 4},
        "parallel": {"schedule": "dualpipev"},
    }
    deep = {"model": {"layers": 4}, "moe": {"ffn_hidden_size": 16}, "checkpoint": {"save_every": 1}}
    whole = run_ranks(2, TARGET + "run", tiny(text, tmp_path / "whole", **half, **deep), **RUN)
    config = tiny(text, tmp_path / "cut", **half, **deep)
    observe_ranks(2, TARGET + "run", config, kwargs={"kill_at": 2}, **RUN)
    config.checkpoint.resume = True
    for ours, reference in zip(run_ranks(2, TARGET + "run", config, **RUN), whole, strict=True):
        assert ours[2] == reference[2]
