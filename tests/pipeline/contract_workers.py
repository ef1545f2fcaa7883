"""What the ranks of test_contract.py run."""

from __future__ import annotations

import inspect
from unittest import mock

import torch
import torch.distributed as dist

from hcmegatron.model.execution import Execution
from hcmegatron.pipeline import runner
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.training.model import build_model
from megatron.core.pipeline_parallel import schedules as megatrons
from tests.model.workers import VOCAB, S, batches, groups_of, megatron_loss_step
from tests.small_configs import small_config

COUNT = 2


def timeouts() -> tuple[list, list]:
    """Seconds given to the transports, and to the groups that a schedule with two directions makes."""
    config = small_config("mhc", False)
    config.parallel.schedule, config.parallel.pipeline, config.parallel.timeout_s = "dualpipe", 2, 77
    with (
        groups_of(config) as groups,
        mock.patch.object(dist, "new_group", wraps=dist.new_group) as new_group,
        mock.patch.object(runner, "DistributedTransport", wraps=runner.DistributedTransport) as gloo,
        mock.patch.object(runner, "cpu_transport", wraps=runner.cpu_transport) as shared,
    ):
        for config.parallel.transport in ("auto", "gloo"):
            build_forward_backward(config, build_model(config, VOCAB, groups), groups, Execution())
    return tuple(
        [call.kwargs["timeout"].total_seconds() for call in calls]
        for calls in (shared.call_args_list + gloo.call_args_list, new_group.call_args_list)
    )


def persistent_attention() -> list[bool]:
    """Whether torch may take cuDNN's attention: to begin with, and with schedules that do not and that do overlap."""
    found = [torch.backends.cuda.cudnn_sdp_enabled()]
    for overlap in (False, True):
        config = small_config("mhc", False)
        config.parallel.schedule, config.parallel.overlap = "dualpipev", overlap
        with groups_of(config) as groups:
            build_forward_backward(config, build_model(config, VOCAB, groups), groups, Execution())
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
    return found


def calls(cases: list[dict]) -> list[tuple[str, str] | list[float]]:
    """Per case, losses of one step with these arguments besides the usual ones, or the error."""
    config = small_config("mhc", False)
    config.parallel.schedule, config.parallel.tensor, config.parallel.sequence = "1f1b", 2, True
    found = []
    with groups_of(config) as groups:
        chunks = build_model(config, VOCAB, groups)
        schedule = build_forward_backward(config, chunks, groups, Execution())
        for case in cases:
            arguments = {
                "forward_step_func": megatron_loss_step,
                "data_iterator": iter(batches(COUNT, config.training.micro_batch)),
                "model": chunks,
                "num_microbatches": COUNT,
                "seq_length": S,
                "micro_batch_size": config.training.micro_batch,
                "forward_only": True,
            }
            try:
                found.append([float(loss["loss"][0]) for loss in schedule(**(arguments | case))])
            except (TypeError, ValueError) as error:
                found.append((type(error).__name__, str(error)))
    return found


def megatron_defaults() -> dict[str, dict]:
    """Of each of Megatron's own: the arguments with a default, and the defaults."""
    return {
        function.__name__: {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        for function in (
            megatrons.forward_backward_no_pipelining,
            megatrons.forward_backward_pipelining_without_interleaving,
            megatrons.forward_backward_pipelining_with_interleaving,
        )
    }
