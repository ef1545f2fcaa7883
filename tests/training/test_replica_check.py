"""Ranks that should hold or compute the same: who is named where one does not, and nobody where all do."""

import json
import re

import pytest
import torch

from hcmegatron.config import ConfigError, check_config
from hcmegatron.training.agreement import AT_ONCE, Differing, bits_hash, differing, in_words
from tests.ranks import run_ranks
from tests.small_configs import put, tiny
from tests.training import health_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}
ONE = {"pipeline": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_every_single_bit_and_the_order_show_in_a_hash(dtype):
    tensor = torch.arange(6).to(dtype)
    whole = tensor.view(torch.uint8)
    seen = {bits_hash(tensor), bits_hash(tensor.flip(0))}
    for byte in range(whole.numel()):
        for bit in range(8):
            whole[byte] ^= 1 << bit
            seen.add(bits_hash(tensor))
            whole[byte] ^= 1 << bit
    assert len(seen) == 2 + 8 * whole.numel()


def test_a_hash_is_the_same_however_a_tensor_lies_and_tells_zeros_apart():
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert bits_hash(tensor) == bits_hash(tensor.t().contiguous().t()) == bits_hash(tensor.clone())
    assert bits_hash(torch.tensor([0.0])) != bits_hash(torch.tensor([-0.0]))
    large = torch.zeros(AT_ONCE["cpu"] + 2, dtype=torch.uint8)
    before = bits_hash(large)
    large[AT_ONCE["cpu"] + 1] = 1
    after = bits_hash(large)
    large[AT_ONCE["cpu"] + 1], large[1] = 0, 1
    assert len({before, after, bits_hash(large)}) == 3  # the same place of two parts


def test_who_is_odd():
    everyones = [{1: 7, 2: 5}, {1: 7, 2: 6, 3: 1}, {1: 8}, {3: 1}]
    assert differing(everyones) == {
        1: Differing((0, 1, 2), (2,)),
        2: Differing((0, 1), (0, 1)),  # of two, nobody knows
    }
    assert differing([{1: 7}, {1: 8}, {1: 7}, {1: 8}])[1].odd == (0, 1, 2, 3)


def test_who_is_odd_in_words():
    where = ["a, cpu", "a, cpu", "b, cpu"]
    found = [Differing((0, 1, 2), (2,)), Differing((0, 1, 2), (2,))]
    line = "rank 2 (b, cpu) has other bits in 2 of them, the first x"
    assert in_words(found, ["", "", "x"], where) == line
    assert in_words([Differing((0, 1), (0, 1))], ["x", "x", ""], where) == (
        "rank 0 (a, cpu) has other bits in 1 of them, the first x, rank 1 (a, cpu) has other bits in 1 of them, the "
        "first x; no majority says which of them is wrong"
    )


@pytest.mark.ranks
@pytest.mark.parametrize(
    "ranks, sections",
    [
        (2, {"parallel": {**ONE, "tensor": 2, "sequence": True}, "model": {"tie_embeddings": True}}),
        (
            2,
            {
                "parallel": {**ONE, "distributed_optimizer": True, "overlap_grad_reduce": True}
                | {"overlap_param_gather": True},
                "training": {"dtype": "bf16"},
                "moe": {"grouped": False},
                "health": {"compare_gradients_every": 1},
            },
        ),
        (  # which one micro-batch is too few for
            2,
            {
                "parallel": {**ONE, "schedule": "dualpipev"},
                "training": {"global_batch": 4},
                "health": {"compare_gradients_every": 1},
            },
        ),
        (
            2,
            {
                "parallel": {"schedule": "dualpipe"},
                "model": {"layers": 4, "tie_embeddings": True},
                "training": {"global_batch": 4},
                "health": {"compare_gradients_every": 2},
            },
        ),
    ],
    ids=["tensor", "data", "two micro-batches at least", "mirrors"],
)
def test_an_even_run_agrees(ranks, sections, text, tmp_path):
    config = tiny(text, tmp_path / "run", **sections)
    assert run_ranks(ranks, health_workers.compared, config, [], **RUN) == [""] * ranks
    assert "WARNING" not in (tmp_path / "run/train.log").read_text()


@pytest.mark.ranks
def test_comparing_changes_no_number(text, tmp_path):
    """With overlapped reductions, dropout, and experts whose biases follow the tokens that they get."""
    losses = []
    for every in (1, 0):
        config = tiny(text, tmp_path / f"every{every}", health={"compare_gradients_every": every})
        put(config, parallel={**ONE, "overlap_grad_reduce": True}, training={"steps": 3})
        config.moe.expert_bias_rate = 0.5
        run_ranks(2, health_workers.compared, config, [], **RUN)
        lines = (tmp_path / f"every{every}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1] and len(set(losses[0])) > 2


@pytest.mark.ranks
def test_a_flipped_bit_is_found_before_the_next_checkpoint_and_its_rank_is_named(text, tmp_path):
    config = tiny(text, tmp_path / "run", parallel=ONE, training={"global_batch": 3})
    flip = ["tests.training.health_workers:Flip"]
    said = run_ranks(3, health_workers.compared, config, flip, **RUN)
    assert len(set(said)) == 1  # on every rank
    assert re.fullmatch(
        r"after step 2, tensors of weights and optimizer that should be the same on several ranks are not: rank 1 "
        r"\(\S+, cpu\) has other bits in 1 of them, the first decoder\.layers\.0\.input_layernorm\.weight at \[0\] of "
        r"\[16\] \(model's\); they agreed after step 1: go on from a checkpoint up to there",
        said[0],
    )
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.ranks
def test_checkpoints_since_ranks_agreed_are_set_aside(text, tmp_path):
    """What one of them is read into is equal again, and nothing would find it."""
    config = tiny(text, tmp_path / "run", parallel=ONE, training={"global_batch": 2, "steps": 6})
    put(config, checkpoint={"save_every": 1, "keep_last": 4}, health={"compare_parameters_every": 3})
    said = run_ranks(2, health_workers.compared, config, ["tests.training.health_workers:Flip"], **RUN)
    folder = tmp_path / "run/checkpoints"
    assert said[0].endswith(
        "they agreed after step 0: go on from a checkpoint up to there; checkpoints after that are set aside: "
        f"{folder}/step-00000001.damaged, {folder}/step-00000002.damaged"
    )
    assert {path.name for path in folder.iterdir()} == {"step-00000001.damaged", "step-00000002.damaged"}


@pytest.mark.ranks
def test_a_rank_that_miscounts_is_named(text, tmp_path):
    """Its parameters are everybody's: gradients are summed over ranks before they are used."""
    health = {"compare_gradients_every": 1, "on_difference": "warn"}
    config = tiny(text, tmp_path / "run", parallel=ONE, training={"global_batch": 3}, health=health)
    miscount = ["tests.training.health_workers:Miscount"]
    assert run_ranks(3, health_workers.compared, config, miscount, **RUN) == [""] * 3
    warned = [line for line in (tmp_path / "run/train.log").read_text().splitlines() if "WARNING" in line]
    assert len(warned) == 1  # it is said again only where it changes
    assert re.match(
        r"WARNING: after step 1, gradients of one micro-batch that should be the same on several ranks are not: "
        r"rank 2 \(\S+, cpu\) has other bits in 2 of them, the first gradients 0 of stage 0, tensor rank 0; "
        r"training goes on",
        warned[0],
    )


def test_experts_of_other_ranks_are_refused(text, tmp_path):
    config = tiny(
        text, tmp_path / "run", parallel={**ONE, "expert": 2}, health={"compare_gradients_every": 1}
    )
    with pytest.raises(
        ConfigError, match=r"^health\.compare_gradients_every = 1 with parallel\.expert = 2 and"
    ):
        check_config(config)
