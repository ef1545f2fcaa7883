"""What a model needs is said, and refused where it cannot be had, before anything is allocated."""

import pytest

from hcmegatron.config import Config, ConfigError, load
from hcmegatron.planner.memory import bytes_a_parameter, rank_parameters
from hcmegatron.planner.parameters import total_parameters
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import memory, planned
from tests.ranks import ROOT

FILES = ("quickstart", "olmo-1b", "olmo2-1b", "olmoe-1b-7b", "mhc-3b")
GIB = 2**30


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev", "dualpipe"])
@pytest.mark.parametrize("file", FILES)
def test_the_ranks_together_hold_the_model(file, schedule):
    config = load(ROOT / f"configs/{file}.yaml")
    config.parallel.pipeline, config.parallel.schedule = 2, schedule
    of_ranks = [rank_parameters(config, 512, memory.parts(config, rank)) for rank in (0, 1)]
    copies = 2 if schedule == "dualpipe" else 1
    tied = (
        512 * config.model.hidden_size if config.model.tie_embeddings else 0
    )  # in the first and the last chunk
    assert sum(of_ranks) == copies * (total_parameters(config, 512) + tied)


def test_bytes():
    config = Config()
    assert bytes_a_parameter(config, 4) == 16
    config.parallel.distributed_optimizer = True
    assert bytes_a_parameter(config, 4) == 10
    config.training.dtype = "bf16"
    assert bytes_a_parameter(config, 4) == 9  # 2 + 4, and 12 shared out
    config.parallel.distributed_optimizer = None
    assert bytes_a_parameter(config, 4) == 9
    config.parallel.distributed_optimizer = False
    assert bytes_a_parameter(config, 4) == 18


def test_a_model_that_cannot_be_held_is_refused_in_one_line(monkeypatch):
    config = Config()
    config.connection.n = 300
    monkeypatch.setattr(memory, "available", lambda: 8 * GIB)
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        memory.expected(config, 384, RankInfo(0, 1, 0, 1, "h", 1, "this command"))
    text = str(refused.value)
    assert "the model has 27,8" in text and "415 GiB for weights" in text and "8 GiB can be had" in text
    assert "connection.n = 300" in text and "\n" not in text


def test_a_plan_that_does_not_fit_is_refused_or_warned_of(monkeypatch, capsys):
    config = Config()
    config.connection.n, config.data.sequence_length = 32, 2048
    monkeypatch.setattr(memory, "available", lambda: 5 * GIB // 4)
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planned, "available", lambda: 5 * GIB // 4)
    place = RankInfo(0, 1, 0, 1, "h", 1, "this command")
    with pytest.raises(
        ConfigError, match=r"planned to need .* GiB on the 1 ranks .*, and 1.25 GiB can be had"
    ):
        memory.expected(config, 384, place)
    config.run.overcommit = True
    assert "planned in all; 1.25 GiB can be had" in memory.expected(config, 384, place)
    assert "recompute.mode = block or full keeps less" in capsys.readouterr().err
