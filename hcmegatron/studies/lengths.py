"""How long a run is, and in which steps: from tokens, tokens per parameter or FLOPs; learning rate and batch by rule;
where rates decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.studies import rules
from hcmegatron.studies.axes import Point
from hcmegatron.studies.matching import baseline, number_of_parameters
from hcmegatron.studies.sections import Decay
from hcmegatron.studies.study import Study, with_settings

LONGEST = 2**31 - 1  # steps


def lengths(study: Study, own: Mapping[str, Point], settings: Mapping[str, Any]) -> dict[str, Any]:
    """training.steps, training.global_batch and optimizer.lr of a run, as far as the study works them out.

    Args:
        own: the run's point of every axis.
        settings: of the run over the base, as far as they are known.

    Raises:
        ConfigError: the budget is too small for one step, or the batch for one sequence.
    """
    found: dict[str, Any] = {}
    config = with_settings(study.base_config, settings)
    wanted = _tokens(study, own, config)
    N = float(number_of_parameters(config, "body"))
    if study.batch is not None:
        found["training.global_batch"] = _sequences(study, config, N, wanted)
        config = with_settings(config, found)
    batch = config.training.global_batch * config.data.sequence_length
    if study.budget is not None:
        steps = round(wanted / batch)
        if steps < 1:
            raise ConfigError(
                f"{study.budget.name} = {own[study.budget.name].value:g} are {wanted:,.0f} tokens, less than one step "
                f"has: {batch:,}; raise it, or lower training.global_batch"
            )
        if steps > LONGEST:
            raise ConfigError(
                f"{study.budget.name} = {own[study.budget.name].value:g} are {steps:,} steps, more than {LONGEST:,}; "
                "lower it, or raise training.global_batch"
            )
        found["training.steps"] = steps
    D = float(found.get("training.steps", config.training.steps) * batch)
    rate = config.optimizer.lr
    if study.learning_rate is not None:
        rate = found["optimizer.lr"] = rules.LEARNING_RATES[study.learning_rate.rule].at(N, D)
    if "lr_times" in own:
        found["optimizer.lr"] = rate * float(own["lr_times"].value)
    return found


def decayed(decay: Decay, config: Config) -> tuple[int, list[int], list[int]]:
    """The steps of a run's own decay; and of every branch, where it starts and where it ends.

    Raises:
        ConfigError: the rate does not wait to be decayed, or a branch has no step to start from.
    """
    schedule, steps, warm = config.optimizer.schedule, config.training.steps, config.optimizer.warmup_steps
    if schedule != "wsd":
        raise ConfigError(
            f"decay needs optimizer.schedule = wsd, and it is {schedule}; give it in settings, or leave decay out"
        )
    starts, ends = [], []
    for share in decay.branches:
        end = max(1, round(share * steps))
        starts.append(end - max(1, round(decay.share * end)))
        ends.append(end)
        if starts[-1] < max(1, warm):
            raise ConfigError(
                f"the branch at {share:g} of {steps} steps would decay from step {starts[-1]}, before warm-up has "
                f"ended (optimizer.warmup_steps = {warm}); branch later, warm up less, or train longer"
            )
    if len(set(starts)) < len(starts):
        raise ConfigError(
            f"decay.branches start from the same step of {steps}; branch further apart, or train longer"
        )
    return max(1, round(decay.share * steps)), starts, ends


def _tokens(study: Study, own: Mapping[str, Point], config: Config) -> float:
    """That the run is to be trained with, before they are made whole steps."""
    budget = study.budget
    if budget is None:
        return float(config.training.steps * config.training.global_batch * config.data.sequence_length)
    value = float(own[budget.name].value)
    if budget.name == "flops":
        forward: int = counts.forward_flops(config, counts.whole_model(config)).total()
        return value / (3 * forward)
    if budget.name == "tokens_per_parameter":
        if study.pairing.of == "baseline":
            config = baseline(study, own)
        return value * number_of_parameters(config, study.pairing.parameters)
    return value


def _sequences(study: Study, config: Config, N: float, D: float) -> int:
    """The batch by rule, in the nearest multiple."""
    assert study.batch is not None
    of = study.batch.multiple_of
    exact = rules.BATCHES[study.batch.rule].at(N, D) / config.data.sequence_length
    return max(1, round(exact / of)) * of
