"""A checkpoint holds the same bits whatever layout, optimizer and precision wrote or read it."""

import json
from collections import Counter
from itertools import permutations

import pytest

from tests.ranks import run_ranks
from tests.training import reshard_table, workers
from tests.training.reshard_cases import RUN, content, differing, network

pytestmark = pytest.mark.ranks

SHARDED = {"distributed_optimizer": True}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path


@pytest.mark.parametrize("dtype, parallel", [("bf16", {}), ("fp32", {})], ids=str)
def test_experts_in_an_optimizer_of_their_own_and_a_stage_without(dtype, parallel, text, tmp_path):
    """EP 2 x PP 2: trains, saves, and continues with the same bits."""
    split = {"pipeline": 2, "expert": 2, **parallel}
    whole = run_ranks(4, workers.run, network(text, tmp_path / "whole", split, dtype), **RUN)
    start = {"load": str(tmp_path / "whole/checkpoints/step-00000002")}
    again = network(text, tmp_path / "again", split, dtype, checkpoint=start)
    for ours, reference in zip(run_ranks(4, workers.run, again, **RUN), whole, strict=True):
        assert set(reference) == {1, 2, 3} and ours == {3: reference[3]}
    assert f"{start['load']} after step 2, bit for bit" in (tmp_path / "again/train.log").read_text()


def test_every_layout_optimizer_and_precision_reads_what_another_wrote(text, tmp_path):
    """EP 2 x PP 2 in bf16 -> one process -> TP 2 + SP -> EP 2 -> a V of two ranks in bf16. Hyper-parameters are the
    configuration's, not the checkpoint's."""
    first = network(
        text,
        tmp_path / "first",
        {"pipeline": 2, "expert": 2},
        "bf16",
        training={"dtype": "bf16", "global_batch": 4, "steps": 2},
    )
    run_ranks(4, workers.run, first, **RUN)
    path = tmp_path / "first/checkpoints/step-00000002"
    original = content(path)
    assert {dtype for dtype, _, _ in original.values()} == {"torch.float32"}
    routes = [
        (1, {}, "fp32"),
        (2, {"tensor": 2, "sequence": True, **SHARDED}, "fp32"),
        (2, {"expert": 2}, "fp32"),
        (2, {"pipeline": 2, "schedule": "dualpipev", "distributed_optimizer": False}, "bf16"),
    ]
    for number, (ranks, parallel, dtype) in enumerate(routes):
        beta, multiplier = 0.5 + 0.1 * number, 2.0 + number
        other = {"checkpoint": {"load": str(path)}, "optimizer": {"beta1": beta, "eps": 1e-6}}
        other["connection"] = {"lr_multiplier": multiplier}
        config = network(text, tmp_path / f"{number}", parallel, dtype, **other)
        for rank in run_ranks(ranks, workers.saved_again, config, tmp_path / f"{number}/again", **RUN):
            assert rank["rounded otherwise"] == []
            assert {(group[0], group[1]) for group in rank["groups"]} == {(f"({beta}, 0.95)", "1e-06")}
            assert {group[2] for group in rank["groups"]} == {"1.0", str(multiplier)}
        path = tmp_path / f"{number}/again/step-00000002"
        assert differing(content(path), original) == []
        assert json.loads((path / "manifest.json").read_text())["updates"] == 2


def test_the_pairs_of_the_table_have_every_change_of_every_axis():
    pairs = reshard_table.chosen()
    every = set(permutations(reshard_table.LAYOUTS, 2))
    seen, all_of_them = (
        set().union(*(reshard_table.changes(*pair) for pair in which)) for which in (pairs, every)
    )
    assert len(set(pairs)) == len(pairs) and set(pairs) < every and seen == all_of_them
    assert {
        ("PP", 1, 2),
        ("PP", 2, 1),
        ("mirrors", True, False),
        ("schedule", "dualpipe", "interleaved"),
    } < seen
    readers = Counter(writer for writer, _ in pairs)
    assert len(readers) == 12 and min(readers.values()) == 3
