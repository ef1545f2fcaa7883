"""Loss-free balancing counts exactly, whatever the precision, and moves biases by those counts."""

import os

import pytest

from tests.ranks import run_ranks
from tests.small_configs import put, tiny
from tests.training import balancing_workers

RUN = {"preload": ("tests.training.balancing_workers",), "process_group": False, "timeout": 200}
TARGET = balancing_workers.balanced
STEPS = 200 if "SOAK" in os.environ else 60
# 1,024 tokens a step, top 2 of 4: 512 an expert, where bf16 counts by fours. Of the network only the routers matter.
SIZES = {
    "model": {"attention": "gqa"},
    "connection": {"kind": "residual"},
    "training": {"global_batch": 16, "micro_batch": 4, "dtype": "bf16", "threads": 1, "log_every": 50},
    "data": {"sequence_length": 64},
    "moe": {"ffn_hidden_size": 16, "first_dense": 0},
}


def config_for(text, directory, steps, **sections):
    config = tiny(text, directory, **{name: dict(values) for name, values in SIZES.items()})
    config.parallel.pipeline = 1
    config.training.steps, config.checkpoint.save_every = steps, 0
    return put(config, **sections)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(1, {}), (2, {"pipeline": 2, "schedule": "dualpipe"})],
    ids=["one process", "dualpipe"],
)
def test_counts_and_biases_are_exact_in_bf16(ranks, parallel, text, tmp_path):
    """At every step, every router and every mirror copy: counts are the histogram of the run's own routing maps."""
    config = config_for(
        text, tmp_path / "run", STEPS, parallel=parallel, training={"micro_batch": 8 // ranks}
    )
    results = run_ranks(ranks, TARGET, config, **RUN)
    for wrong, counts, _ in results:
        assert wrong == []
        assert len(counts) == STEPS
        for layers in counts:
            assert sorted(layers) == [1, 2]
            assert all(sum(layer) == 16 * 64 * 2 for layer in layers.values())
    of_layers = [biases for *_, biases in results]
    for biases in of_layers:
        assert all(any(bias) for bias in biases.values())
        for layer, values in biases.items():  # copies on other ranks
            assert all(other.get(layer, values) == values for other in of_layers)
    if ranks > 1:
        assert all(sorted(biases) == [1, 2] for biases in of_layers)


@pytest.mark.ranks
def test_precision_does_not_change_what_is_counted(text, tmp_path):
    """With the same routing forced on both.

    Every token wants expert 0, those at even places 1, and 2 those of the others whose place is a multiple of 3: 43 of
    the 256 tokens of each of four micro-batches. Who wants one alone gets 1 as well.
    """
    found = []
    for dtype in ("bf16", "fp32"):
        config = config_for(text, tmp_path / dtype, 3, training={"dtype": dtype})
        ((wrong, counts, biases),) = run_ranks(1, TARGET, config, True, **RUN)
        assert wrong == []
        found.append((counts, biases))
    assert found[0] == found[1]
    assert found[0][0][0][1] == [16 * 64, 852, 172, 0]
