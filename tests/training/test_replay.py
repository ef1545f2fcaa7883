"""The verb `replay`: what it refuses, and what it says of a run whose masks it cannot draw."""

import pytest

from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import health_workers


@pytest.mark.ranks
def test_a_checkpoint_of_another_network_is_one_line(text, tmp_path):
    sections = {
        "parallel": {"pipeline": 1},
        "training": {"steps": 2, "threads": 1},
        "checkpoint": {"save_every": 1},
    }
    config = tiny(text, tmp_path / "run", **sections)
    others = [{"model.ffn_hidden_size": 32}, {"model.layers": 3}, {}]
    (said,) = run_ranks(
        1,
        health_workers.replayed_with,
        config,
        "2:nan",
        others,
        preload=("tests.training.health_workers",),
        process_group=False,
        timeout=120,
    )
    path = tmp_path / "run/checkpoints/step-00000001"
    for line in said[:2]:
        assert line.startswith(f"checkpoint {path} does not fit the network of the kept step: ")
        assert line.endswith("; name one of the same network with --checkpoint=DIR") and "\n" not in line
    assert said[2].startswith("step 2: loss nan")
