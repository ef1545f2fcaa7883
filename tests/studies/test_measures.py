"""Figures of a run's steps, by hand."""

import math

import numpy as np
import pytest

from hcmegatron.config import Config
from hcmegatron.planner import counts
from hcmegatron.studies import accounts, measures
from tests.small_configs import put


def step(number, loss, norm=1.0, **figures):
    return {"step": number, "kind": "train", "loss": loss, "grad_norm": norm, "seconds": 36.0} | figures


def test_of_a_run():
    entries = [step(n, 5.0 - n / 100, norm=float(n), tokens_per_s=100.0 + n, mfu=0.5) for n in range(1, 31)]
    entries[9]["memory_gib"], entries[20]["memory_gib"] = 0.5, 0.75
    entries.insert(4, {"step": 4, "kind": "diagnostics", "composite_gain_forward_max": 2.0})
    entries.append({"step": 30, "kind": "diagnostics", "composite_gain_backward_max": 7.5})
    found = measures.of_training(entries)
    assert found["train_loss"] == pytest.approx(5.0 - sum(range(11, 31)) / 2000)  # the last twenty
    assert (found["largest_gain"], found["grad_norm_max"], found["memory_gib"]) == (7.5, 30.0, 0.75)
    assert found["grad_norm_p50"] == 15.5 and found["hours"] == pytest.approx(0.3)
    assert found["tokens_per_s"] == 118.0 and found["mfu"] == 0.5  # of steps 6 to 30
    assert found["spikes"] == 0


def test_of_nothing():
    found = measures.of_training([])
    assert found.pop("spikes") == 0 and found.pop("hours") == 0
    assert all(math.isnan(value) for value in found.values())


def test_spikes_are_counted_over_the_median_of_the_steps_before():
    """Of steps 1.9, 2.0, 2.1 in turn the median is 2.0, and a deviation 0.14826."""
    losses = np.tile([1.9, 2.0, 2.1], 60)
    assert measures.spikes(losses) == 0 and measures.spikes(np.linspace(9.0, 1.0, 500)) == 0
    losses[[20, 100, 150]] = 9.0, 2.0 + 5.9 * 0.14826, 2.0 + 6.1 * 0.14826  # the first is too early to tell
    assert measures.spikes(losses) == 1
    losses[30] = np.nan
    assert measures.spikes(losses) == 2


def test_a_branch_has_the_steps_of_its_run_before_it():
    trunk, branch = [step(n, 3.0) for n in range(1, 9)], [step(n, 2.0) for n in range(6, 8)]
    path = measures.path_of(trunk, 5, branch)
    assert [(entry["step"], entry["loss"]) for entry in path] == [
        *((n, 3.0) for n in range(1, 6)),
        (6, 2.0),
        (7, 2.0),
    ]


def test_the_evaluation_of_a_step_and_its_sources():
    held = {"step": 8, "kind": "validation", "loss": 2.0, "bits_per_byte": 2.9, "loss/web": 2.5}
    entries = [held | {"step": 4, "loss": 3.0}, held, held | {"kind": "test", "loss": 9.0}]
    assert measures.evaluated(entries, "validation", 8) == {"loss": 2.0, "loss/web": 2.5}
    assert measures.evaluated(entries, "test", 8)["loss"] == 9.0
    assert measures.evaluated(entries, "test", 4) == {}


def test_parameters_and_flops_by_hand():
    """Two layers of width 8: attention 4 x 64 and an MLP of 3 x 8 x 12 each; 8 x 264 of embedding and of head; norms of
    8, five with the last."""
    config = put(
        Config(),
        model={
            "layers": 2,
            "hidden_size": 8,
            "heads": 2,
            "ffn_hidden_size": 12,
            "vocab_size": 261,
            "vocab_multiple": 8,
        },
        connection={"kind": "residual"},
        data={"sequence_length": 16},
    )
    found = accounts.parameters(config)
    body, vocab = 2 * (4 * 64 + 3 * 8 * 12) + 5 * 8, 8 * 264
    assert counts.padded_vocabulary(config) == 264
    assert (found["parameters_embedding"], found["parameters_head"], found["parameters_body"]) == (
        vocab,
        vocab,
        body,
    )
    assert found["parameters_connections"] == 0 and found["parameters_total"] == body + 2 * vocab
    assert found["parameters"] == found["parameters_active"] == body + vocab
    flops = accounts.flops(config, 1000)
    matmul = 2 * (4 * 64 + 3 * 8 * 12) + vocab
    assert flops["flops_6nd"] == 6 * (body + vocab) * 1000 and flops["flops_forward"] == 2 * matmul * 1000
    assert flops["flops_planner"] == (6 * matmul + 3 * 2 * 16 * 2 * (4 + 4) + 3 * 2 * 2 * 8) * 1000
