"""What the ranks of test_parameter_gather.py do: steps whose updated parameters arrive as late as they may."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import model
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup
from tests.layouts.network import Batches, chunks_of

BUCKET = 2000  # parameters, so that a small network has many


_start = _ParamAndGradBucketGroup.start_param_sync


class _WhenWaitedFor:
    """A gather under way of which nothing has arrived until somebody waits for it."""

    def __init__(self, group: _ParamAndGradBucketGroup) -> None:
        self.group = group

    def wait(self) -> None:
        self.group.param_gather_handle = None
        _start(self.group, force_sync=True)


def _start_late(group: _ParamAndGradBucketGroup, force_sync: bool = False) -> None:
    if force_sync or not group.ddp_config.overlap_param_gather:
        _start(group, force_sync)
    else:
        group.param_gather_handle, group.param_gather_dispatched = _WhenWaitedFor(group), True


def train(configs: list[Config], steps: int) -> list[tuple[int, list[float]]]:
    """Of each network: the number of its buckets, and the losses of some steps."""
    found = []
    small_buckets = partial(model.DistributedDataParallelConfig, bucket_size=BUCKET)
    with (
        patch.object(model, "DistributedDataParallelConfig", small_buckets),
        patch.object(_ParamAndGradBucketGroup, "start_param_sync", _start_late),
    ):
        for config in configs:
            with megatron_groups(config) as groups:
                chunks = [model.wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
                execution = Execution()
                if config.recompute.mode != "none":
                    models = [unwrap(chunk) for chunk in chunks]
                    execution = Recomputation(
                        config.recompute, models, micro_batch_tokens(config), live=1, deferred=0
                    ).execution
                    model.gather_parameters(chunks)
                optimizer = build_optimizer(config, chunks, groups)
                set_learning_rate(optimizer, 0.05, 0.0)
                batches = Batches(config, groups.dp.rank(), groups.dp.size())
                schedule = build_forward_backward(config, chunks, groups, execution)
                stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
                losses = [stepper.step(step).loss for step in range(steps)]
                found.append((sum(len(chunk.bucket_groups) for chunk in chunks), losses))
    return found
