"""Ranges, and what checks return. What they say is in answers/."""

import pytest

from hcmegatron.config import (
    Config,
    ConfigError,
    check_batch,
    check_config,
    check_world,
    load_config,
)
from hcmegatron.config.ranges import RANGE_OF
from hcmegatron.config.schema import distributed_optimizer, micro_batch_tokens
from hcmegatron.config.types import leaves


def make(*settings):
    """A Config with `section.key=value` settings, through the same door as a user's."""
    return load_config(make.file, [f"--{text}" for text in settings])


@pytest.fixture(autouse=True)
def _file(tmp_path):
    make.file = tmp_path / "c.yaml"
    make.file.write_text("{}")


def test_the_defaults_are_fine_and_silent():
    assert check_config(Config()) == []


def test_every_number_has_a_range():
    numbers = {key for key, hint in leaves().items() if hint in (int, float, int | None, float | None)}
    lists = {"optimizer.step_decay_at", "optimizer.step_decay_to", "data.suffixes", "recompute.modules"}
    lists |= {"run.observers", "run.profile_at", "checkpoint.keep_at"}
    assert set(RANGE_OF) == numbers | lists | {"recompute.block_length"}


def test_ranges_hold_for_configs_built_in_code_too():
    config = Config()
    config.model.layers = 0
    with pytest.raises(ConfigError, match=r"model\.layers = 0 is out of range; it must be from 1"):
        check_config(config)


def test_optimizer_state_is_sharded_with_bf16_or_where_it_is_said():
    assert [distributed_optimizer(make(f"training.dtype={name}")) for name in ("fp32", "bf16")] == [
        False,
        True,
    ]
    said = ["training.dtype=bf16", "parallel.distributed_optimizer=false"]
    assert distributed_optimizer(make(*said)) is False
    assert distributed_optimizer(make("parallel.distributed_optimizer=true")) is True


def test_world_sizes():
    config = make("parallel.pipeline=2", "parallel.tensor=2")
    assert [check_world(config, size) for size in (4, 8, 16)] == [1, 2, 4]
    config = make("moe.experts=8", "moe.first_dense=1", "parallel.pipeline=2", "parallel.expert=4")
    assert check_world(config, 8) == 4


def test_microbatches():
    assert check_batch(make("training.global_batch=24"), 2) == 3
    for schedule in ("dualpipe", "dualpipev"):
        config = make("parallel.pipeline=2", f"parallel.schedule={schedule}")
        assert check_batch(config, 1) == 4


def test_a_micro_batch_has_so_many_tokens():
    assert micro_batch_tokens(make("training.micro_batch=3", "data.sequence_length=5")) == 15


def test_what_cannot_be_printed_is_written_out():
    assert str(ConfigError("a\nb\tc\u2028d\udcffe é '\"\\")) == "a\\nb\\tc\\u2028d\\udcffe é '\"\\"
