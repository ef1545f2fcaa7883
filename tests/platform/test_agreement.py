"""Ranks that differ are told in what, and which of them."""

import pytest

from hcmegatron.config import Config
from hcmegatron.platform.agreement import disagreement, in_words, rank_facts


def test_what_differs_is_named_with_its_ranks():
    of_ranks = [{"optimizer.lr": value, "training.steps": "9"} for value in ("0.003", "0.001", "0.003")]
    assert disagreement(of_ranks) == (
        "optimizer.lr = 0.003 on ranks 0, 2, 0.001 on rank 1; "
        "start all ranks with the same configuration, data and versions"
    )
    assert disagreement([of_ranks[0]] * 3) is None


def test_many_differences_and_missing_facts():
    first, second = {key: "1" for key in "abcde"}, {key: "2" for key in "abcd"}
    assert disagreement([first, second]).startswith("a = 1 on rank 0, 2 on rank 1; b = ")
    assert "; 2 more differ; start" in disagreement([first, second])
    assert disagreement([{"e": "1"}, {}]).startswith("e = 1 on rank 0, nothing on rank 1;")


@pytest.mark.parametrize(
    "ranks, words",
    [
        ([3], "rank 3"),
        ([0, 1], "ranks 0, 1"),
        ([0, 1, 2, 3, 7], "ranks 0 to 3, 7"),
        ([1, 3, 4, 5], "ranks 1, 3 to 5"),
    ],
)
def test_ranks_in_words(ranks, words):
    assert in_words(ranks) == words


def test_facts_are_settings_versions_data_and_the_world():
    config = Config()
    known = rank_facts(config, 4, "fingerprint")
    assert (
        known["connection.kind"] == "mhc" and known["model.head_dim"] == "null" and known["kernels"] == "auto"
    )
    assert known["the world size"] == "4" and known["the data's fingerprint"] == "fingerprint"
    assert {"Python", "torch", "megatron-core", "hcmegatron"} < known.keys()
    config.training.threads = 3  # a rank's own
    assert rank_facts(config, 4, "fingerprint") == known
    config.training.seed += 1
    assert rank_facts(config, 4, "fingerprint") != known
