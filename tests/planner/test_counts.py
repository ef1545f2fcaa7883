"""Parameters and FLOPs by class: sums to the integer, shares of ranks, and published FLOPs."""

from types import SimpleNamespace

import pytest

from hcmegatron.config import load_config
from hcmegatron.data.tokenizer_registry import TOKENIZERS
from hcmegatron.planner import counts, published
from hcmegatron.planner.buffers import parameters
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.planner.layout import make_layout
from hcmegatron.planner.machines import find_machine
from hcmegatron.planner.parameters import active_parameters, total_parameters
from hcmegatron.planner.plan import changed_config
from tests.ranks import ROOT

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def config(name, **changes):
    return changed_config(load_config(ROOT / f"configs/{name}.yaml"), changes)


@pytest.mark.parametrize("name", FILES)
def test_classes_sum_to_the_model(name):
    loaded = config(name)
    whole, vocabulary = counts.whole_model(loaded), counts.padded_vocabulary(loaded)
    assert counts.parameters(loaded, whole).total() == total_parameters(loaded, vocabulary)
    assert counts.parameters(loaded, whole, active=True).total() == active_parameters(loaded, vocabulary)
    forward = counts.forward_flops(loaded, whole).total()
    assert 3 * forward == pytest.approx(training_flops_per_token(loaded, vocabulary), rel=1e-12)


def test_the_vocabulary_is_the_tokenizer_s_where_none_is_given(monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "byte", lambda data: SimpleNamespace(vocab_size=1000))
    loaded = config("olmo-1b", **{"model.vocab_size": None})
    assert counts.padded_vocabulary(loaded) == 1024


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev", "dualpipe"])
@pytest.mark.parametrize("name", ["mhc-27b", "olmo-1b", "olmoe-1b-7b"])
def test_ranks_hold_the_model_together(name, schedule):
    loaded = config(name, **{"parallel.pipeline": 2, "parallel.schedule": schedule})
    where = make_layout(loaded, find_machine("h100"), 2)
    held = sum((counts.held_parameters(where, rank) for rank in (0, 1)), start=counts.Counter())
    whole = counts.parameters(loaded, counts.whole_model(loaded))
    copies = 2 if schedule == "dualpipe" else 1
    tied = (
        whole["embedding"] if loaded.model.tie_embeddings else 0
    )  # a second time, as the head of another stage
    assert held.total() == copies * (whole.total() + tied)
    assert held["experts"] == copies * whole["experts"]


def test_tensor_and_expert_parallelism_shard_their_own():
    changes = {"parallel.tensor": 2, "parallel.sequence": True, "parallel.expert": 8}
    loaded = config("mhc-27b", **changes)
    whole = counts.parameters(loaded, counts.whole_model(loaded))
    held = counts.held_parameters(make_layout(loaded, find_machine("h100"), 8), 0)
    for name in counts.CLASSES:
        shards = 8 if name == "experts" else 1 if name in counts.WHOLE else 2
        down = 30 * 2560 * (512 + 64) if name == "attention" else 0  # of keys and values, whole on every rank
        assert held[name] == (whole[name] + down) // shards, name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tensor", [1, 4])
def test_a_rank_s_classes_sum_to_the_parameters_that_it_holds(name, tensor):
    changes = {"parallel.tensor": tensor, "parallel.sequence": tensor > 1, "parallel.pipeline": 2}
    where = make_layout(config(name, **changes), find_machine("h100"), 2 * tensor)
    vocab_size = counts.padded_vocabulary(where.config)
    for rank in range(where.config.parallel.pipeline):
        held = [p.numbers for part in where.held(rank) for p in parameters(where.config, vocab_size, part)]
        assert counts.held_parameters(where, rank).total() == sum(held)


@pytest.mark.parametrize("name", published.FLOPS)
def test_published_flops_within_half_a_percent(name):
    tflops, tokens, _ = published.FLOPS[name]
    own = published.flops_per_token(published.model(name))
    assert own == pytest.approx(tflops / tokens * 1e12, rel=5e-3)


def test_the_mfu_of_a_published_row_is_computed_again():
    """Qwen3-30B-A3B on 16 H100: 1024 x 4096 tokens in 20.1 s are 299 TFLOP/s, 30% of 989."""
    flops = published.flops_per_token(published.model("Qwen3-30B-A3B"))
    rate = flops * 1024 * 4096 / 20.1 / 16
    assert rate == pytest.approx(299e12, rel=5e-3)
    assert round(rate / (find_machine("h100").peak_tflops * 1e12), 2) == 0.30


def test_recomputation_counts_in_hardware_flops_alone():
    from hcmegatron.planner.plan import recomputed_flops

    plain = config("mhc-27b")
    whole = counts.forward_flops(plain, counts.whole_model(plain))
    assert recomputed_flops(plain) == 0
    full = config("mhc-27b", **{"recompute.mode": "full"})
    assert recomputed_flops(full) == whole.total() - whole["head"]
    block = config("mhc-27b", **{"recompute.mode": "block"})
    assert recomputed_flops(block) == whole["connections"]
    up = config("mhc-27b", **{"recompute.mode": "selective", "recompute.modules": ["mla_up_proj"]})
    # queries 2560 -> 32 heads of 192, keys and values 512 -> 32 heads of 128 + 128, in 30 layers
    assert recomputed_flops(up) == 2 * 30 * (2560 * 32 * 192 + 512 * 32 * 256)
