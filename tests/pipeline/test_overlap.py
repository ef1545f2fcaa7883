"""Forwards overlapped with backwards, node by node, against the same schedule with F before B: equal bit for bit."""

import copy

import pytest

from hcmegatron.model.gpt import stages
from hcmegatron.pipeline.configured_schedule import placement, training_schedule
from schedules.node_costs import pair_turns
from tests.pipeline import overlap_workers
from tests.pipeline.cases import flat
from tests.ranks import run_ranks
from tests.small_configs import small_config

pytestmark = pytest.mark.ranks
RUN = {"preload": ("tests.pipeline.overlap_workers",), "timeout": 200}
MICRO_BATCHES = 4


def config_for(kind, moe, schedule="dualpipev", pipeline=2, **sections):
    config = small_config(kind, moe, **sections)
    config.parallel.schedule, config.parallel.pipeline = schedule, pipeline
    config.model.hidden_dropout = 0.1
    return config


def check(ranks, configs, micro_batches=MICRO_BATCHES):
    """Every configuration overlapped and not: the results of both."""
    both = [copy.deepcopy(config) for config in configs for _ in range(2)]
    for config in both:  # backwards whole in both, that their order be the same
        config.parallel.split_backward = False
    for config in both[1::2]:
        config.parallel.overlap = True
    results = run_ranks(ranks, overlap_workers.steps, both, micro_batches, **RUN)
    for index, config in enumerate(configs):
        for rank in results:
            plain, overlapped = rank[2 * index : 2 * index + 2]
            case = config.connection.kind, config.moe.experts, config.recompute, config.parallel
            assert plain.recorded == overlapped.recorded == overlapped.called, case
            assert plain.called == flat(plain.recorded), case
            assert plain.loss == overlapped.loss, case
            assert plain.bits.keys() == overlapped.bits.keys()
            assert not [name for name, bits in plain.bits.items() if bits != overlapped.bits[name]], case
    return results


def roles_of(config):
    """Per stage of the model, its layers' roles."""
    where = placement(config.parallel)
    moe = {"attention", "dispatch", "experts", "combine"}
    first = config.moe.first_dense if config.moe.experts else config.model.layers
    return [
        [{"attention", "experts"} if layer < first else moe for layer in stage.layers]
        for stage in stages(config.model.layers, where.model_stages)
    ]


NODES = {
    True: {
        ("attention", "F"): ["attention", "route"],
        ("dispatch", "F"): ["dispatch"],
        ("experts", "F"): ["experts"],
        ("combine", "F"): ["combine", "merge"],
        ("combine", "I"): ["merge", "combine"],
        ("experts", "I"): ["experts"],
        ("dispatch", "I"): ["dispatch"],
        ("attention", "I"): ["route", "attention"],
    },
    False: {
        ("attention", "F"): ["attention"],
        ("experts", "F"): ["mlp"],
        ("experts", "I"): ["mlp"],
        ("attention", "I"): ["attention"],
    },
}


def check_pairs(config, results, micro_batches=MICRO_BATCHES):
    """Of every FB: the turns that were executed are the plan's, and the nodes ran in the order of the turns."""
    where, layers = placement(config.parallel), roles_of(config)
    config = copy.deepcopy(config)
    config.parallel.overlap = True
    for rank, step in enumerate(results):
        actions = training_schedule(config, micro_batches).actions[rank]
        assert step.called == step.recorded == actions
        planned = [action for action in actions if action.overlapped]
        assert 0 < len(planned) == len(step.pairs)
        for action, (executed, ran) in zip(planned, step.pairs, strict=True):
            forward, backward = (layers[where.model_stage(part.stage)] for part in action.parts)
            hides = any("dispatch" in roles for roles in (*forward, *backward))
            turns = pair_turns(forward, backward, 0 if hides else len(forward), len(backward))
            assert executed == turns
            expected = []
            last = max(index for index, turn in enumerate(turns) if turn.phase == "I")
            for index, (layer, role, phase) in enumerate(turns):
                of = forward if phase == "F" else backward
                nodes = NODES["dispatch" in of[layer]][role, "F" if phase == "F" else "I"]
                expected += [(node, {"F": "F", "I": "B", "W": "W"}[phase]) for node in nodes]
                if index == last:
                    expected.append(("embedding", "B"))
            assert ran == expected


def test_every_connection_dense_and_moe():
    """Six layers on four stages: chunks of two and one, the first layer without all-to-alls."""
    cases = [(kind, moe) for kind in ("residual", "dhc", "dfc", "mhc", "ihc", "gr") for moe in (False, True)]
    cases += [("mhc_lite", True)]
    configs = [config_for(*case, model={"layers": 6}) for case in cases]
    configs += [
        config_for("mhc", moe, model={"layers": 6}, connection={"single_pass": True}) for moe in (False, True)
    ]
    results = check(2, configs)
    for index, config in enumerate(configs):
        check_pairs(config, [rank[2 * index + 1] for rank in results])


def test_recomputation():
    modules = ["core_attn", "mla_up_proj", "mlp", "shared_experts"]
    settings = [
        {"mode": "block", "block_length": "live"},
        {"mode": "full"},
        {"mode": "selective", "modules": modules},
        {"mode": "block", "modules": modules},
    ]
    configs = [config_for("mhc", True, model={"layers": 8}, recompute=setting) for setting in settings]
    configs += [
        config_for(kind, True, model={"layers": 8}, recompute=setting)
        for kind in ("dhc", "dfc", "ihc", "gr")
        for setting in (settings[0], settings[3])
    ]
    configs.append(
        config_for("mhc", True, model={"layers": 8}, recompute=settings[0], connection={"single_pass": True})
    )
    check(2, configs)


def test_both_directions():
    configs = [config_for("mhc", True, "dualpipe"), config_for("dhc", False, "dualpipe")]
    configs += [config_for("ihc", False, "dualpipe"), config_for("gr", True, "dualpipe")]
    configs.append(config_for("mhc", True, "dualpipe", connection={"single_pass": True}))
    results = check(2, configs)
    for index, config in enumerate(configs):
        check_pairs(config, [rank[2 * index + 1] for rank in results])


def test_experts_on_two_ranks():
    configs = [config_for(kind, True, model={"layers": 8}, parallel={"expert": 2}) for kind in ("mhc", "dhc")]
    configs[1].moe.grouped = False
    configs.append(config_for("mhc", True, "dualpipe", parallel={"expert": 2}))
    results = check(4, configs)
    for index, config in enumerate(configs):
        check_pairs(config, [rank[2 * index + 1] for rank in (results[0], results[2])])


def test_four_ranks():
    configs = [
        config_for("mhc", True, schedule, 4, model={"layers": 9}) for schedule in ("dualpipev", "dualpipe")
    ]
    results = check(4, configs, 2 * MICRO_BATCHES)
    for index, config in enumerate(configs):
        check_pairs(config, [rank[2 * index + 1] for rank in results], 2 * MICRO_BATCHES)


def test_bf16():
    """One cast more or less at a boundary would show."""
    check(2, [config_for(kind, True, training={"dtype": "bf16"}) for kind in ("mhc", "dfc")])


def test_tied_embeddings():
    """On one rank both ends of a V, on both ranks those of DualPipe."""
    tied = {"tie_embeddings": True}
    check(2, [config_for("mhc", False, schedule, model=tied) for schedule in ("dualpipev", "dualpipe")])
