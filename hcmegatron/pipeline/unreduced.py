"""A step whose gradients stay each rank's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from hcmegatron.pipeline.runner import ScheduleRunner


@contextmanager
def unreduced(schedule: Callable, chunks: list[nn.Module]) -> Iterator[None]:
    """Within it, `schedule` neither sums gradients over ranks nor divides them, and router biases are not moved.

    Megatron's schedules do both through functions of the chunks' configuration, ours by themselves.
    """
    configs = {id(chunk.config): chunk.config for chunk in chunks}.values()
    kept = [(config.finalize_model_grads_func, config.no_sync_func) for config in configs]
    with ExitStack() as inside:
        for chunk in chunks:
            inside.enter_context(chunk.no_sync())
        try:
            for config in configs:
                config.finalize_model_grads_func = config.no_sync_func = None
            if isinstance(schedule, ScheduleRunner):
                schedule.reduces = False
            yield
        finally:
            for config, (finalise, no_sync) in zip(configs, kept, strict=True):
                config.finalize_model_grads_func, config.no_sync_func = finalise, no_sync
            if isinstance(schedule, ScheduleRunner):
                schedule.reduces = True
