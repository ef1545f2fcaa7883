"""What the ranks of a fuzzed run do: train as the configuration says, and note what there is to compare.

It holds on to the loop by two methods, Stepper.step and Checkpoints.save, and to torch where random numbers for
dropout are drawn.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo  # torch's optimizers import it when they are made: here once for all ranks
import torch.nn.functional as F

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import checkpoint, step
from hcmegatron.training.model import gather_parameters
from hcmegatron.training.run import train
from megatron.core import parallel_state
from tests.fuzz.report import Report
from tests.layouts import network


def run(config: Config, first: int, values: bool) -> Report:
    """Train.

    Args:
        first: the 1-based step that the run begins with.
        values: whether to return weights and gradients.
    """
    report = Report()
    stepper: list[step.Stepper] = []
    usual_step, usual_gradients = step.Stepper.step, step.Stepper.gradients
    usual_save = checkpoint.Checkpoints.save

    def watched_step(self: step.Stepper, *args: Any, **kwargs: Any) -> step.StepResult:
        stepper[:] = [self]
        report.steps += 1
        report.place = (
            self.groups.dp.rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            self.groups.tp.rank(),
        )
        with drawn_from(report.masks.setdefault(first + report.steps - 1, [])):
            return usual_step(self, *args, **kwargs)

    def watched_gradients(self: step.Stepper, *args: Any, **kwargs: Any) -> tuple:
        result = usual_gradients(self, *args, **kwargs)
        if values and report.steps:  # not the rehearsal
            network.whole_gradients(self.chunks)
            report.gradients[first + report.steps - 1] = network.gradients(self.chunks)
        return result

    def watched_save(self: checkpoint.Checkpoints, *args: Any, **kwargs: Any) -> Any:
        result = usual_save(self, *args, **kwargs)
        (one,) = stepper
        gather_parameters(one.chunks)
        done = first + report.steps - 1
        report.state[done] = digests(one)
        if values:
            report.weights[done] = network.values([unwrap(chunk) for chunk in one.chunks])
        return result

    step.Stepper.step, step.Stepper.gradients = watched_step, watched_gradients
    checkpoint.Checkpoints.save = watched_save
    try:
        code = train(config, discover_ranks(os.environ))
        assert code == 0, f"train returned {code}"
    except ConfigError as error:
        report.refused = str(error)
    return report


def digests(stepper: step.Stepper) -> dict[str, str]:
    """Of every weight, buffer and optimizer tensor of this rank, by name."""
    found: dict[str, str] = {}
    for index, chunk in enumerate(stepper.chunks):
        for name, tensor in unwrap(chunk).state_dict().items():
            if torch.is_tensor(tensor):
                found[f"chunk {index} {name}"] = _digest(tensor)
    for index, optimizer in enumerate(stepper.optimizer.chained_optimizers):
        for g, group in enumerate(optimizer.optimizer.param_groups):
            for p, parameter in enumerate(group["params"]):
                place = f"optimizer {index}, group {g}, parameter {p}"
                found[f"{place}, weight"] = _digest(parameter)
                for name, value in optimizer.optimizer.state.get(parameter, {}).items():
                    if torch.is_tensor(value):
                        found[f"{place}, {name}"] = _digest(value)
    assert len(found) > 5
    return found


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]


@contextmanager
def drawn_from(found: list[str]) -> Iterator[None]:
    """Notes in `found` the generator's state before every dropout: equal states give equal masks.

    What backward draws again, for recomputation, is not noted.
    """

    def noting(usual: Callable, probability: Callable[..., float]) -> Callable:
        def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
            if probability(*args, **kwargs) > 0 and torch._C._current_graph_task_id() == -1:
                found.append(_digest(torch.get_rng_state()))
            return usual(*args, **kwargs)

        return watched

    def of_dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> float:
        return p if training else 0.0

    def of_attention(*_: Any, dropout_p: float = 0.0, **__: Any) -> float:
        return dropout_p

    usual = F.dropout, F.scaled_dot_product_attention
    F.dropout, F.scaled_dot_product_attention = noting(usual[0], of_dropout), noting(usual[1], of_attention)
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = usual
