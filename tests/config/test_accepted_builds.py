"""Every configuration that is accepted without a warning builds: a property over the schema.

BUILD_SEEDS=300 in the environment asks for more of them.
"""

import os
from collections import defaultdict

import pytest

from hcmegatron.config.checks import check_config, check_world
from hcmegatron.config.load import scalar
from hcmegatron.config.types import defaults, flatten
from tests.config import build_workers
from tests.fuzz.cases import of_seed
from tests.ranks import run_ranks

SEEDS = range(int(os.environ.get("BUILD_SEEDS", "16")))
RUN = {"preload": ("tests.config.build_workers",), "timeout": 60 + 4 * len(SEEDS)}


def accepted(text):
    """Ranks -> configurations that draw every setting (tests/fuzz/space.py) and are accepted without a warning."""
    found = defaultdict(list)
    for case in map(of_seed, SEEDS):
        for config, ranks in ((case.config, case.ranks), (case.other, case.other_ranks)):
            config.training.steps, config.data.paths = 100, [str(text)]  # so that a warmup ends
            if config.kernels == "triton":  # what a machine without a GPU refuses is not the schema's
                config.kernels = "auto"
            assert check_config(config) == [], " ".join(words(config))
            check_world(config, ranks)
            found[ranks].append(config)
    return found


def words(config):
    initial = defaults()
    return [f"--{key}={scalar(value)}" for key, value in flatten(config).items() if value != initial[key]]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_accepted_without_a_warning_builds(tmp_path):
    """Data, model, recomputation, optimizer, schedule and observers, on as many ranks as the layout is drawn for."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {n * n}\n" for n in range(400)))
    drawn = accepted(text)
    assert sum(map(len, drawn.values())) == 2 * len(SEEDS) and len(drawn) > 1
    for ranks, configs in drawn.items():
        folder = tmp_path / str(ranks)
        cases = [(" ".join(words(config)), config) for config in configs]
        for built in run_ranks(ranks, build_workers.built, cases, folder, **RUN):
            assert built == len(cases)
