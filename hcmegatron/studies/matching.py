"""Parameters of a run, and kinds that are given as many as the baseline has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.studies.axes import Point
from hcmegatron.studies.study import Study, with_settings

WIDEST = 2**20  # of an MLP


def number_of_parameters(config: Config, which: Literal["active", "total", "body"]) -> int:
    """All; those that a token passes, without the embedding, a look-up; or of these those without the head."""
    found = counts.parameters(config, counts.whole_model(config), active=which != "total")
    return int(found.total() - (found["head"] if which == "body" else 0))


def combined(study: Study, own: Mapping[str, Point]) -> dict[str, Any]:
    """What the file gives for a point of every axis: dotted settings over the base."""
    settings = dict(study.settings)
    for point in own.values():
        settings |= point.settings
    return settings


def baseline(study: Study, own: Mapping[str, Point]) -> Config:
    """The baseline's configuration at a run's points of the other axes."""
    kinds = study.axis("kind")
    assert kinds is not None
    (point,) = (point for point in kinds.points if point.label == study.report.baseline)
    return with_settings(study.base_config, combined(study, {**own, "kind": point}))


def matched(study: Study, own: Mapping[str, Point]) -> dict[str, Any]:
    """The width of the run's MLPs with which it has the baseline's number of parameters; nothing without `match`.

    Raises:
        ConfigError: no width comes near enough.
    """
    match = study.match
    if match is None or own["kind"].label == study.report.baseline:
        return {}

    settings = combined(study, own)

    def parameters(width: int) -> int:
        config = with_settings(study.base_config, {**settings, match.adjust: width})
        return number_of_parameters(config, match.parameters)

    target = number_of_parameters(baseline(study, own), match.parameters)
    low, high = 1, WIDEST // match.multiple_of  # in multiples; parameters grow with the width
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if parameters(middle * match.multiple_of) < target else (low, middle)
    near = min((max(1, low - 1), low), key=lambda times: abs(parameters(times * match.multiple_of) - target))
    width = near * match.multiple_of
    off = parameters(width) / target - 1
    if abs(off) > match.tolerance:
        raise ConfigError(
            f"with {match.adjust} = {width}, the nearest, it has {off:+.2%} of the baseline's {target:,} parameters, "
            f"more than match.tolerance = {match.tolerance:g}; raise that, or lower match.multiple_of"
        )
    return {match.adjust: width}
