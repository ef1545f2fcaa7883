"""Every schedule over Megatron's chunks against one process: loss, gradients, updated parameters."""

import pytest

from schedules.generators import SCHEDULES as descriptors
from tests.model import workers
from tests.model.compare import largest_errors
from tests.pipeline.cases import config_for
from tests.ranks import run_ranks

MICRO_BATCHES = 9
TARGET = workers.steps
RUN = {"preload": ("tests.model.workers",), "timeout": 200}
SCHEDULES = [
    name for name, kind in descriptors.items() if not kind.misfit(2, MICRO_BATCHES)
]  # test_dualpipe.py
CASES = [("residual", False), ("dhc", True), ("dfc", False), ("mhc", True)]


@pytest.fixture(scope="module")
def alone():
    """One process under no schedule, per case and depth."""
    made = {}

    def of(cases, pipeline, **sections):
        key = (tuple(cases), pipeline, repr(sections))
        if key not in made:
            configs = [config_for(*case, "megatron_1f1b", 1, **sections) for case in cases]
            for config in configs:
                config.model.layers = 8 if pipeline == 4 else 4
            made[key] = run_ranks(1, TARGET, "fp32_step", configs, MICRO_BATCHES, **RUN)[0]
        return made[key]

    return of


def check(alone, cases, schedules, pipeline, ranks, **sections):
    references = alone(cases, pipeline, **{k: v for k, v in sections.items() if k != "parallel"})
    configs = [config_for(*case, schedule, pipeline, **sections) for schedule in schedules for case in cases]
    results = run_ranks(ranks, TARGET, "fp32_step", configs, MICRO_BATCHES, **RUN)
    for index in range(len(configs)):
        found = largest_errors(references[index % len(cases)], [rank[index] for rank in results])
        where = schedules[index // len(cases)], cases[index % len(cases)]
        assert max(found.values()) < 1e-5, (where, found)


@pytest.mark.ranks
@pytest.mark.parametrize("pipeline", [2, 4])
def test_schedules_equal_one_process(alone, pipeline):
    check(alone, CASES, SCHEDULES, pipeline, pipeline)


@pytest.mark.ranks
def test_single_pass(alone):
    """Every message has the pre of the sub-layer before, too, and every gradient of a message that of the pre."""
    check(alone, [("mhc", True)], SCHEDULES, 2, 2, connection={"single_pass": True})


@pytest.mark.ranks
def test_tied_embeddings(alone):
    check(alone, [("mhc", False)], SCHEDULES, 2, 2, model={"tie_embeddings": True})


@pytest.mark.ranks
def test_fp64():
    """With a loss of our own, since Megatron's goes through fp32, and gradients of autograd's, since its data-parallel
    wrapper sums in fp32."""
    alone = [config_for(*case, "megatron_1f1b", 1) for case in CASES]
    references = run_ranks(1, TARGET, "fp64_step", alone, MICRO_BATCHES, **RUN)[0]
    configs = [config_for(*case, schedule, 2) for schedule in SCHEDULES for case in CASES]
    results = run_ranks(2, TARGET, "fp64_step", configs, MICRO_BATCHES, **RUN)
    for index, config in enumerate(configs):
        found = largest_errors(references[index % len(CASES)], [rank[index] for rank in results])
        assert max(found.values()) < 1e-10, (config.parallel.schedule, config.connection.kind, found)
