"""Runs that are started again by themselves: the bits of an undisturbed one, and what is written down."""

import json
import signal
import time
from types import SimpleNamespace

import pytest

from hcmegatron.training import checkpoint, manifest, resume
from hcmegatron.training.heartbeat import Heartbeat
from hcmegatron.training.manifest import Damaged, Progress
from hcmegatron.training.start_ranks import after_restart
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import restart_workers
from tests.training.resume_cases import HERE, made, saved

RUN = {"preload": ("tests.training.restart_workers",), "process_group": False, "timeout": 120}


def losses(directory):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"}


@pytest.mark.ranks
def test_killed_ranks_come_back_to_the_same_bits(text, tmp_path):
    """Before the first checkpoint, from which there is nothing to go on, and after it."""
    sections = {"training": {"steps": 6}, "checkpoint": {"save_every": 3, "asynchronous": False}}
    config = tiny(text, tmp_path / "run", **sections)
    deaths = {2: signal.SIGKILL, 5: signal.SIGSEGV}
    assert run_ranks(1, restart_workers.restarted, config, deaths, tmp_path, **RUN) == [0]
    whole = tiny(text, tmp_path / "whole", **sections)
    assert run_ranks(1, restart_workers.restarted, whole, {}, tmp_path, **RUN) == [0]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 6
    assert not (tmp_path / "whole/restarts.jsonl").exists()

    events = list(map(json.loads, (tmp_path / "run/restarts.jsonl").read_text().splitlines()))
    assert [event["event"] for event in events] == ["ended", "resumed", "ended", "resumed"]
    assert [event["cause"]["signal"] for event in events[::2]] == ["SIGKILL", "SIGSEGV"]
    assert [(event["cause"]["rank"], event["after_step"]) for event in events[::2]] == [(1, 1), (1, 4)]
    assert [(event["restart"], event["from_step"]) for event in events[1::2]] == [(1, 0), (2, 3)]
    for event in events:
        parts = {"ended": {"detect", "end"}, "resumed": {"start", "load", "first_step"}}[event["event"]]
        assert event["seconds"].keys() == parts
        assert all(0 <= seconds < 30 for seconds in event["seconds"].values())
    assert events[3]["seconds"]["load"] > 0.001  # beside a start without a checkpoint


@pytest.mark.ranks
def test_a_new_run_from_anothers_checkpoint_begins_there_again(text, tmp_path):
    """checkpoint.load, on other data, until the run has its own checkpoint; and one rank alone is started again."""
    alone = {"parallel": {"pipeline": 1}, "training": {"steps": 2, "threads": 1}}
    assert run_ranks(
        1, restart_workers.restarted, tiny(text, tmp_path / "first", **alone), {}, tmp_path, **RUN
    ) == [0]
    sections = {
        "parallel": {"pipeline": 1},
        "training": {"steps": 5, "threads": 1},
        "data": {"seed": 7},
        "checkpoint": {"save_every": 4, "asynchronous": False},
    }
    config = tiny(text, tmp_path / "run", **sections)
    config.checkpoint.load = str(tmp_path / "first")
    deaths = {1: signal.SIGKILL, 3: signal.SIGKILL}  # steps 3 and 5, by their data, which begin anew
    assert run_ranks(1, restart_workers.restarted, config, deaths, tmp_path, **RUN) == [0]
    said = [
        line for line in (tmp_path / "run/train.log").read_text().splitlines() if "continuing from" in line
    ]
    assert [line.split(" after")[0].split("/")[-3:] for line in said] == [
        ["first", "checkpoints", "step-00000002"],
        ["first", "checkpoints", "step-00000002"],
        ["run", "checkpoints", "step-00000004"],
    ]


def test_a_damaged_checkpoint_to_load_is_refused_when_the_run_is_started_again(tmp_path, monkeypatch):
    path = saved(tmp_path / "first", made())
    (path / "__0_0.distcp").write_bytes(b"w-ights")  # of its size, which finding it does not see
    config = resume.resumed(
        made(checkpoint={"resume": "never", "load": str(path)}, data={"seed": 7}), tmp_path / "run"
    )
    assert config.checkpoint.resume == "auto"
    monkeypatch.setattr(checkpoint, "on_first_rank", lambda work: work())
    monkeypatch.setattr(checkpoint, "depends_on", lambda config: HERE)
    shares = iter([slice(None)])  # of one verification
    monkeypatch.setattr(
        checkpoint, "verify", lambda start: manifest.verify(start.path, start.manifest, next(shares))
    )
    with pytest.raises(Damaged, match="__0_0"):
        checkpoint.find(config, tmp_path / "run", "text")


def test_a_rank_that_torchrun_starts_again_writes_down_how_long_it_took(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert after_restart() == ()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    (factory,) = after_restart()
    assert factory.func is Heartbeat and factory.keywords == {"number": 2}


@pytest.mark.parametrize("rank, beaten, written", [(0, [40.0, 41.0, 42.0], 1), (1, [], 0)])
def test_signs_of_life_are_the_first_ranks(rank, beaten, written, tmp_path):
    beat, found = [0.0, -1.0], []
    run = SimpleNamespace(
        ranks=SimpleNamespace(rank=rank),
        position=Progress(40, 80),
        load_seconds=0.0,
        directory=tmp_path / "run",
        log=None,
    )
    heart = Heartbeat(run, number=1, beat=beat)
    found.append(beat[1])
    for number in (41, 42):
        began = time.monotonic()
        heart.on_step(SimpleNamespace(number=number))
        assert rank or began <= beat[0] <= time.monotonic()
        found.append(beat[1])
    assert found == (beaten or [-1.0] * 3)
    lines = (tmp_path / "run/restarts.jsonl").read_text().splitlines() if written else []
    assert len(lines) == written == len(list(tmp_path.glob("run/restarts.jsonl")))
    for line in map(json.loads, lines):
        assert (line["restart"], line["from_step"]) == (1, 40) and line["seconds"]["start"] > 0
