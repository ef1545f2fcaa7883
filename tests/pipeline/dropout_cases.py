"""A small network with dropout."""

from tests.small_configs import put, small

LIMIT = 1e-5
RUN = {"preload": ("tests.model.workers",), "timeout": 200}
LAYERS, MICRO_BATCH, MICRO_BATCHES = 4, 2, 4


def network(architecture="moe", kind="mhc", recompute=None, document_mask=False, **parallel):
    config = small(architecture, kind)
    config.model.hidden_dropout = config.model.attention_dropout = 0.2
    config.model.document_mask = document_mask
    config.training.micro_batch, config.training.global_batch = MICRO_BATCH, MICRO_BATCH * MICRO_BATCHES
    return put(config, parallel=parallel, recompute=recompute or {})


PIPELINE = {"pipeline": 2, "schedule": "1f1b"}
