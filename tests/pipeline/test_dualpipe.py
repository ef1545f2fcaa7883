"""Bidirectional DualPipe over Megatron's chunks: two copies of every stage that stay one network."""

import json
import re

import pytest

from tests.model import workers
from tests.model.compare import largest_errors
from tests.pipeline import dualpipe_workers
from tests.pipeline import workers as pipeline_workers
from tests.pipeline.layouts import DISTRIBUTED, EARLY, OVERLAPPED, alone, network, wrong
from tests.pipeline.layouts import run as run_layouts
from tests.ranks import run_ranks
from tests.small_configs import small_config, tiny

TARGET = workers.steps
RUN = {"preload": ("tests.model.workers",), "timeout": 200}
WHOLE = {"preload": ("tests.pipeline.dualpipe_workers",), "process_group": False, "timeout": 150}
CASES = [("residual", False), ("dhc", True), ("dfc", False), ("mhc", True)]


def config_for(kind, moe, schedule, pipeline, layers, **sections):
    config = small_config(kind, moe, **sections)
    config.model.layers = layers
    config.parallel.schedule, config.parallel.pipeline = schedule, pipeline
    if moe:
        config.moe.aux_loss, config.moe.z_loss = 1e-2, 1e-3
    return config


def check(cases, ranks, pipeline, layers, worker="fp32_step", limit=1e-5, **sections):
    """Against one process: loss, gradients and the parameters after a step of SGD."""
    count = 2 * pipeline
    alone = [config_for(*case, "megatron_1f1b", 1, layers, **sections) for case in cases]
    references = run_ranks(1, TARGET, worker, alone, count, **RUN)[0]
    configs = [config_for(*case, "dualpipe", pipeline, layers, **sections) for case in cases]
    results = run_ranks(ranks, TARGET, worker, configs, count, **RUN)
    for index, case in enumerate(cases):
        steps = [rank[index] for rank in results]
        ends = [step for step in steps if step.loss is not None]
        assert ends == [steps[0], steps[-1]]
        # each end saw half of the tokens
        ends[0].loss = ends[1].loss = (ends[0].loss + ends[1].loss) / 2
        found = largest_errors(references[index], steps)
        assert max(found.values()) < limit, (case, found)


@pytest.mark.ranks
@pytest.mark.parametrize("pipeline", [2, 4])
def test_equals_one_process(pipeline):
    check(CASES, pipeline, pipeline, 4)


@pytest.mark.ranks
def test_fp64():
    """As in test_schedules."""
    check(CASES, 2, 2, 4, worker="fp64_step", limit=1e-10)


@pytest.mark.ranks
def test_eight_ranks():
    check([("mhc", True)], 8, 8, 8)


@pytest.mark.ranks
def test_tied_embeddings():
    check([("mhc", False)], 4, 4, 4, model={"tie_embeddings": True})


def both_ways(architecture, kind, micro_batches, **parallel):
    """`network`s whose micro-batches per rank are even, half of them odd: a multiple of nothing that P divides."""
    return network(architecture, kind, micro_batches, **{"schedule": "dualpipe", "pipeline": 2} | parallel)


SPLIT_TENSORS = {"tensor": 2, "sequence": True}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "configs"),
    [
        pytest.param(2, [both_ways("dense", "dfc", 5), both_ways("moe", "mhc", 5)], id="PP 2"),
        pytest.param(4, [both_ways("moe", "mhc", 5, pipeline=4)], id="PP 4"),
        pytest.param(
            4,
            [
                both_ways("dense", kind, 6, **variant)
                for kind, variant in (("mhc", EARLY), ("dfc", DISTRIBUTED), ("dhc", OVERLAPPED), ("mhc", {}))
            ],
            id="DP 2 x PP 2",
        ),
        pytest.param(
            4,
            [
                both_ways("moe", kind, 6, expert=2, **variant)
                for kind, variant in (("mhc", EARLY), ("dhc", {}))
            ],
            id="EP 2 x PP 2",
        ),
        pytest.param(
            4,
            [
                both_ways("dense", "dfc", 5, **SPLIT_TENSORS, **EARLY),
                both_ways("moe", "mhc", 5, **SPLIT_TENSORS),
            ],
            id="TP 2 + SP x PP 2",
        ),
    ],
)
def test_beside_other_parallelism(ranks, configs):
    """The norm that gradients are clipped by, too: copies are counted once."""
    assert wrong(configs, alone(configs), run_layouts(ranks, pipeline_workers.steps, configs)) == []


@pytest.mark.ranks
def test_a_tied_embedding_lies_in_the_same_place_of_both_copies_buffers():
    """The distributed optimizer gives it a bucket of its own, in units of which a layer's 40 x 40 numbers are no
    whole number."""
    config = both_ways("dense", "residual", 5, layers=2, tied=True, **EARLY)
    config.model.hidden_size = 40
    assert wrong([config], alone([config]), run_layouts(2, pipeline_workers.steps, [config])) == []


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path


def run_config(text, directory, schedule, **sections):
    """mHC with MLA and MoE, balanced by router biases that move at every step."""
    config = tiny(text, directory, **sections)
    config.model.layers, config.model.hidden_dropout, config.moe.first_dense = 4, 0.0, 1
    config.moe.expert_bias_rate = 0.01
    config.parallel.schedule = schedule
    config.training.global_batch, config.optimizer.schedule = 4, "constant"
    config.checkpoint.save_every = 25
    return config


def losses(directory, after):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["step"] > after and "grad_norm" in line}


@pytest.mark.ranks
def test_copies_stay_equal_and_checkpoints_fit_other_schedules(text, tmp_path):
    config = run_config(text, tmp_path / "both", "dualpipe", training={"steps": 50})
    first, second = run_ranks(2, dualpipe_workers.run, config, **WHOLE)
    assert first.keys() == second.keys() == {0, 1}
    for stage, names in first.items():
        assert any(name.endswith("expert_bias") for name in names)
        assert any("exp_avg_sq" in name for name in names)
        assert not [name for name in names if names[name] != second[stage].get(name)], stage
    said = (tmp_path / "both/train.log").read_text()
    assert re.search(r"dualpipe keeps two copies of every stage: [\d,]+ parameters on this rank", said)

    expected = losses(tmp_path / "both", 25)
    start = {"load": str(tmp_path / "both/checkpoints/step-00000025")}
    for schedule in ("dualpipev", "1f1b"):
        directory = tmp_path / schedule
        again = run_config(text, directory, schedule, training={"steps": 28}, checkpoint=start)
        run_ranks(2, dualpipe_workers.run, again, **WHOLE)
        found = losses(directory, 25)
        assert found.keys() == {26, 27, 28}
        assert all(abs(found[step] - expected[step]) < 2e-6 for step in found), (schedule, found)


@pytest.mark.ranks
def test_bf16_copies_stay_equal_and_its_checkpoint_continues_under_dualpipev(text, tmp_path):
    """On two data-parallel ranks, each of which holds half of the optimizer's state of either copy, and with gradients
    that Megatron would put in several buckets, on the first pipeline rank alone."""
    sections = {"moe": {"ffn_hidden_size": 16}}
    numbers = {"steps": 8, "dtype": "bf16"}
    config = run_config(text, tmp_path / "both", "dualpipe", training=numbers, **sections)
    config.checkpoint.save_every, config.training.global_batch = 4, 8
    config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = True
    ranks = run_ranks(4, dualpipe_workers.run, config, 4096, **WHOLE)
    for first, second in zip(
        ranks[:2], ranks[2:], strict=True
    ):  # the pipeline's two ranks, per data-parallel rank
        for stage in (0, 1):
            assert first[stage].keys() == second[stage].keys()
            assert not [name for name, bits in first[stage].items() if bits != second[stage][name]]
    halves = [{name for stage in rank.values() for name in stage if "exp_avg_sq" in name} for rank in ranks]
    assert halves[0] and halves[1] and halves[0] != halves[1]

    start = {"load": str(tmp_path / "both/checkpoints/step-00000004")}
    numbers["steps"] = 7
    again = run_config(text, tmp_path / "v", "dualpipev", training=numbers, checkpoint=start, **sections)
    again.training.global_batch = 8
    run_ranks(4, dualpipe_workers.run, again, **WHOLE)
    expected, found = losses(tmp_path / "both", 4), losses(tmp_path / "v", 4)
    assert found.keys() == {5, 6, 7}
    # Weights and what crosses stages are rounded alike; gradients are summed in fp32.
    assert all(abs(found[step] - expected[step]) < 1e-5 for step in found), found
