"""What a model needs is said, and refused where it cannot be had, before anything is allocated."""

import pytest

from hcmegatron.config import Config, ConfigError, load_config
from hcmegatron.planner.buffers import parameters
from hcmegatron.planner.parameters import total_parameters
from hcmegatron.planner.state_bytes import stream_bytes
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import memory_check
from tests.ranks import ROOT

FILES = ("quickstart", "olmo-1b", "olmo2-1b", "olmoe-1b-7b", "mhc-3b")
GIB = 2**30


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev", "dualpipe"])
@pytest.mark.parametrize("file", FILES)
def test_the_ranks_together_hold_the_model(file, schedule):
    config = load_config(ROOT / f"configs/{file}.yaml")
    config.parallel.pipeline, config.parallel.schedule = 2, schedule
    of_ranks = [
        p.numbers
        for rank in (0, 1)
        for part in memory_check.stages_of_rank(config, rank)
        for p in parameters(config, 512, part)
    ]
    copies = 2 if schedule == "dualpipe" else 1
    tied = (
        512 * config.model.hidden_size if config.model.tie_embeddings else 0
    )  # in the first and the last chunk
    assert sum(of_ranks) == copies * (total_parameters(config, 512) + tied)


def test_bytes_of_streams():
    config = Config()
    config.training.dtype = "bf16"
    part = memory_check.stages_of_rank(config, 0)
    # 4 layers, 4 sequences of 256 tokens, 4 streams of 128 channels in 2 bytes
    assert stream_bytes(config, part, 1) == 2 * 4 * 4 * 256 * 4 * 128 * 2


def test_a_model_that_cannot_be_held_is_refused_in_one_line(monkeypatch):
    config = Config()
    config.connection.n = 300
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        memory_check.expected_memory(config, 384, RankInfo(0, 1, 0, 1, "h", 1, "this command"), 4)
    text = str(refused.value)
    assert "the model has 27,8" in text and "415 GiB for weights" in text and "8 GiB can be had" in text
    assert "connection.n = 300" in text and "\n" not in text


def test_wide_streams_are_warned_of(monkeypatch, capsys):
    config = Config()
    config.connection.n, config.data.sequence_length = 32, 2048
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 5 * GIB // 4)
    monkeypatch.setattr(memory_check.torch.cuda, "is_available", lambda: False)
    place = RankInfo(0, 1, 0, 1, "h", 1, "this command")
    words = memory_check.expected_memory(config, 384, place, 4)
    assert "1 GiB at least for residual streams; 1.25 GiB can be had" in words
    assert "recompute.mode = block keeps fewer" in capsys.readouterr().err


def test_the_copy_that_saving_keeps_is_counted_and_warned_of(monkeypatch, capsys):
    config = Config()
    place = RankInfo(0, 4, 0, 2, "h", 1, "a launcher")  # two machines
    assert memory_check.copied_bytes(config, 384, place) == 12 * total_parameters(config, 384) / 2
    config.training.dtype = "fp64"
    assert memory_check.copied_bytes(config, 384, place) == 24 * total_parameters(config, 384) / 2
    config = Config()
    alone = RankInfo(0, 1, 0, 1, "h", 1, "this command")
    monkeypatch.setattr(memory_check.torch.cuda, "is_available", lambda: False)
    for room, asynchronous, warned in ((45, True, True), (45, False, False), (55, True, False)):
        config.checkpoint.asynchronous = asynchronous
        monkeypatch.setattr(memory_check, "available_bytes", lambda room=room: room * 2**20)
        memory_check.expected_memory(config, 384, alone, 4)  # 35 MiB for the training itself
        said = capsys.readouterr().err
        assert ("a copy of the state, 14.3 MiB of this machine's memory" in said) == warned, said
        assert ("checkpoint.asynchronous = false goes without" in said) == warned
