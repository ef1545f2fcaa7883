"""A small network under a schedule, and what a schedule without pairs does."""

from hcmegatron.config.schedule_names import SCHEDULES
from tests.small_configs import small_config


def config_for(kind, moe, schedule, pipeline, **sections):
    layers = 8 if pipeline == 4 else 4
    config = small_config(kind, moe, **sections)
    config.model.layers = layers
    config.parallel.schedule, config.parallel.pipeline = schedule, pipeline
    config.parallel.virtual = 2 if SCHEDULES[schedule].chosen else None
    if moe:
        config.moe.aux_loss, config.moe.z_loss = 1e-2, 1e-3
    return config


def flat(actions):
    """Without pairs: F, then B."""
    return tuple(part for action in actions for part in action.parts)
