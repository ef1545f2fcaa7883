"""Small networks under a layout and on one process, and which of them differ."""

import copy

from tests.layouts.table import largest_error
from tests.pipeline import workers
from tests.ranks import run_ranks
from tests.small_configs import small

LIMIT = 1e-5
RUN = {"preload": ("tests.model.workers",), "timeout": 200}
DISTRIBUTED = {"distributed_optimizer": True}
OVERLAPPED = {"overlap_grad_reduce": True}
EARLY = DISTRIBUTED | OVERLAPPED | {"overlap_param_gather": True}


def network(architecture, kind, micro_batches, layers=4, tied=False, **parallel):
    """A network whose global batch does not depend on the layout: 2 x micro_batches sequences."""
    config = small(architecture, kind)
    config.model.layers, config.model.tie_embeddings = layers, tied
    config.training.global_batch = 2 * micro_batches
    if architecture == "moe":
        config.moe.aux_loss = 1e-2
    config.training.micro_batch = 1
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    return config


def run(ranks, worker, configs, *arguments):
    return run_ranks(ranks, worker, configs, *arguments, **RUN)


def alone(configs):
    """The same networks on one process, by what distinguishes them: unlike networks once each."""
    references = []
    for config in configs:
        config = copy.deepcopy(config)
        config.parallel = type(config.parallel)()
        config.moe.grouped = False
        references.append(config)
    unlike = [config for index, config in enumerate(references) if config not in references[:index]]
    outcomes = run(1, workers.steps, unlike)[0]
    return [outcomes[unlike.index(config)] for config in references]


def named(configs):
    return [
        (c.connection.kind, bool(c.moe.experts), c.model.layers, *vars(c.parallel).items()) for c in configs
    ]


def wrong(configs, references, ranks):
    """The configurations whose loss, gradient norm, gradients or update differ from the reference, with the error."""
    errors = [largest_error(one, [rank[i] for rank in ranks]) for i, one in enumerate(references)]
    return [pair for pair in zip(named(configs), errors, strict=True) if not pair[1] < LIMIT]
