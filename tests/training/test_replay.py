"""The verb `replay`: what it refuses, and what it says of a run whose masks it cannot draw."""

import pytest

from hcmegatron.config import load_config
from hcmegatron.config.schema import Run
from hcmegatron.config.types import flatten
from hcmegatron.training.replay_cli import alone, other_masks
from tests.ranks import ROOT, run_ranks
from tests.small_configs import tiny
from tests.training import health_workers


@pytest.mark.ranks
def test_another_network_is_one_line_and_so_are_other_masks(text, tmp_path):
    sections = {
        "parallel": {"pipeline": 1},
        "training": {"steps": 2, "threads": 1},
        "checkpoint": {"save_every": 1},
    }
    config = tiny(text, tmp_path / "run", **sections)
    others = [
        {"model.ffn_hidden_size": 32},
        {"model.layers": 3},
        {},
        {"parallel.tensor": 2, "parallel.sequence": True},
    ]
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
    plain, split = said[2:]
    assert plain.startswith("step 2: loss nan") and "masks" not in plain
    lines = split.splitlines()
    assert lines.pop(2).startswith(
        "hidden dropout has other masks here than in the run, whose 2 tensor-parallel ranks"
    )
    assert lines == plain.splitlines()


@pytest.mark.parametrize(
    "attention, hidden, tensor, sequence, named",
    [
        (0.1, 0.1, 1, False, ""),
        (0.0, 0.1, 2, False, ""),
        (0.1, 0.1, 2, False, "attention dropout has"),
        (0.1, 0.0, 2, True, "attention dropout has"),
        (0.0, 0.1, 2, True, "hidden dropout has"),
        (0.1, 0.1, 2, True, "attention and hidden dropout has"),
    ],
)
def test_masks_that_one_process_does_not_have_are_named(attention, hidden, tensor, sequence, named):
    settings = {"model.attention_dropout": attention, "model.hidden_dropout": hidden}
    said = other_masks({**settings, "parallel.tensor": tensor, "parallel.sequence": sequence})
    assert said.startswith(named) and bool(said) == bool(named)


def test_what_a_run_showed_of_itself_is_no_part_of_a_replay(tmp_path):
    asked = ["--parallel.schedule=dualpipev", "--run.profile_at=[2]", "--run.tensorboard=true"]
    whole = load_config(ROOT / "configs/quickstart.yaml", asked)
    assert alone(flatten(whole), tmp_path).run == Run()
