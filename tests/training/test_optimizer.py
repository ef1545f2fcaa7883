"""What Megatron's optimizer is told, and which parameters decay and take the connections' learning rate. No ranks."""

from dataclasses import fields

import torch
from torch import nn

from hcmegatron.config import Config
from hcmegatron.connections.build import build_connection
from hcmegatron.training import optimizer
from hcmegatron.training.optimizer import build_optimizer, decays, multipliers, optimizer_config
from megatron.core.optimizer.optimizer_config import OptimizerConfig, ParamKey, ParamWithNamePredicate
from tests.connections.small_network import config as connection
from tests.small_configs import put


def told(config, kind):
    """What differs from OptimizerConfig's own defaults."""
    ours, theirs = optimizer_config(config, kind), OptimizerConfig()
    both = {field.name: (getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(ours)}
    return {name: own for name, (own, default) in both.items() if own != default}


def test_every_setting_reaches_megatron():
    config = put(
        Config(),
        optimizer={"lr": 0.25, "weight_decay": 0.5, "beta1": 0.75, "beta2": 0.875, "eps": 0.125, "clip": 2.0},
        training={"dtype": "bf16"},
        parallel={"distributed_optimizer": True, "overlap_param_gather": True},
    )
    assert told(config, "sgd") == {
        "optimizer": "sgd",
        "lr": 0.25,
        "weight_decay": 0.5,
        "adam_beta1": 0.75,
        "adam_beta2": 0.875,
        "adam_eps": 0.125,
        "sgd_momentum": 0.0,
        "clip_grad": 2.0,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "use_distributed_optimizer": True,
        "overlap_param_gather": True,
    }


def test_fp32_is_not_sharded_and_keeps_no_second_weights():
    config = optimizer_config(put(Config(), training={"dtype": "fp32"}), "adam")
    assert (config.optimizer, config.params_dtype, config.bf16) == ("adam", torch.float32, False)
    assert (config.use_distributed_optimizer, config.overlap_param_gather) == (False, False)
    assert optimizer_config(put(Config(), training={"dtype": "fp64"}), "adam").params_dtype == torch.float64


def test_matrices_decay_and_vectors_do_not_and_connections_say_it_themselves():
    linear = nn.Linear(2, 3)
    assert (decays(linear.weight), decays(linear.bias)) == (True, False)
    assert decays(nn.Parameter(torch.zeros(2, 2, 2)))
    own = dict(build_connection(connection("dhc", n=2), 8, 0, norm_eps=0.0).named_parameters())
    assert {name for name, parameter in own.items() if decays(parameter)} == {
        "W_m",
        "W_r",
        "W_b",
        "s_a",
        "s_b",
    }
    assert (own["A_r"].dim(), own["W_m"].dim()) == (2, 1)  # dimension alone would say the opposite


def test_multipliers_are_of_the_undecayed_and_of_connections():
    undecayed, theirs = (
        ParamKey(with_name_predicate=ParamWithNamePredicate(name, lambda parameter, name: None))
        for name in ("undecayed", "connection")
    )
    found = multipliers(0.5)
    assert found == {undecayed: {"wd_mult": 0.0}, theirs: {"lr_mult": 0.5}}
    linear = nn.Linear(2, 3)
    own = dict(build_connection(connection("dhc", n=2), 8, 0, norm_eps=0.0).named_parameters())
    matched = [
        [key.matches(parameter, "") for parameter in (linear.weight, linear.bias, own["W_m"], own["A_r"])]
        for key in found
    ]
    assert matched == [[False, True, False, True], [False, False, True, True]]


def test_the_optimizer_is_built_of_these(monkeypatch):
    monkeypatch.setattr(optimizer, "get_megatron_optimizer", lambda *args, **named: (args, named))
    config, chunks = put(Config(), connection={"lr_multiplier": 0.5}), [nn.Linear(2, 3)]
    for kind, built in (
        ("adam", build_optimizer(config, chunks, None)),
        ("sgd", build_optimizer(config, chunks, None, kind="sgd")),
    ):
        assert built == (
            (optimizer_config(config, kind), chunks),
            {"config_overrides": multipliers(0.5)},
        )
