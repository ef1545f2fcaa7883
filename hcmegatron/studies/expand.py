"""From a study to its runs, by name and in order: the product of its axes, without what is excluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from hcmegatron.config.checks import check_config
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.studies.axes import SEEDS, Axis, Point
from hcmegatron.studies.lengths import decayed, lengths
from hcmegatron.studies.matching import combined, matched
from hcmegatron.studies.runs import Branch, StudyRun
from hcmegatron.studies.study import Study, with_settings


def branch_settings(run: StudyRun, branch: Branch) -> dict[str, Any]:
    """Dotted settings over the base of a branch, which the checkpoint of its run is to be loaded into: the run's own,
    ending after branch.steps with a decay from branch.at_step."""
    return {
        **run.settings,
        "training.steps": branch.steps,
        "optimizer.decay_steps": branch.steps - branch.at_step,
        "checkpoint.keep_at": [],
    }


def expand(study: Study) -> tuple[StudyRun, ...]:
    """All runs; the same file has the same, in the same order.

    Raises:
        ConfigError: a run is no configuration, is the same as another, or there are more than limits.max_runs.
    """
    points = list(_combinations(study))
    most = study.limits.max_runs
    if most is not None and len(points) > most:
        raise study.error(
            "limits.max_runs", f"is less than the study's {len(points)} runs; raise it, or leave runs out"
        )
    resolved: dict[Any, _Resolved] = {}
    found: dict[str, tuple[StudyRun, _Resolved]] = {}
    for own in points:
        name = "-".join(point.label for point in own.values())
        if name in found:
            raise ConfigError(f"{study.file}: two runs are both called {name}; rename a point of an axis")
        seedless = tuple(point.label for axis, point in own.items() if axis != "seed")
        if seedless not in resolved:
            resolved[seedless] = _resolve(study, own, name)
        found[name] = _run(study, name, own, resolved[seedless]), resolved[seedless]
    _refuse_twins(study, list(found.values()))
    _refuse_ineffective(study, list(resolved.values()))
    return tuple(run for run, _ in found.values())


def _combinations(study: Study) -> Iterator[dict[str, Point]]:
    """A point of every axis, by the axis's name; the last axis turns quickest."""
    used = dict.fromkeys(range(len(study.exclude)), False)
    some = False
    for combination in product(*(axis.points for axis in study.axes)):
        own = {axis.name: point for axis, point in zip(study.axes, combination, strict=True)}
        held = [number for number, exclusion in enumerate(study.exclude) if exclusion.holds(own)]
        used |= dict.fromkeys(held, True)
        if not held:
            some = True
            yield own
    for number, matches in used.items():
        if not matches:
            raise study.exclude[number].entry.error("leaves out no run; correct it or leave it out")
    if not some:
        raise study.exclude[0].entry.error("and the other exclusions leave no run; leave some out")


@dataclass(frozen=True)
class _Resolved:
    """What runs that differ in the seed alone have in common."""

    settings: dict[str, Any]
    config: Config
    tokens: int
    steps: int
    branches: tuple[Branch, ...]

    @cached_property
    def idle(self) -> dict[str, str]:
        """Settings that nothing reads, with the reason."""
        return ineffective(self.config)

    @cached_property
    def effect(self) -> str:
        """All the others."""
        return repr([(key, value) for key, value in flatten(self.config).items() if key not in self.idle])


def _resolve(study: Study, own: Mapping[str, Point], name: str) -> _Resolved:
    """The settings of a combination, worked out and checked."""
    settings = combined(study, own)
    try:
        settings |= matched(study, own)
        settings |= lengths(study, own, settings)
        config = with_settings(study.base_config, settings)
        steps, branches = config.training.steps, ()
        if study.decay is not None:
            decay, kept, ends = decayed(study.decay, config)
            settings |= {"optimizer.decay_steps": decay, "checkpoint.keep_at": kept}
            config = with_settings(study.base_config, settings)
            batch = _tokens(config)
            branches = tuple(
                Branch(f"at{share:g}", at, end, end * batch)
                for share, at, end in zip(study.decay.branches, kept, ends, strict=True)
            )
        check_config(config)
    except ConfigError as error:
        raise ConfigError(f"{study.file}: run {name}: {error}") from None
    found = _Resolved(settings, config, steps * _tokens(config), steps, branches)
    for key in own["kind"].settings if "kind" in own else ():
        if key in found.idle:
            raise own["kind"].entry.error(
                f"gives {key}, which has no effect: {found.idle[key]}; leave it out"
            )
    return found


def _run(study: Study, name: str, own: Mapping[str, Point], found: _Resolved) -> StudyRun:
    columns = {_column(study.axes, axis): point.value for axis, point in own.items()}
    seeds = {key: value for key, value in own["seed"].settings.items()} if "seed" in own else {}
    exact = {"tokens": found.tokens, "lr": found.config.optimizer.lr}
    return StudyRun(name, columns | exact, found.settings | seeds, found.tokens, found.steps, found.branches)


def _column(axes: tuple[Axis, ...], name: str) -> str:
    return next(axis.column for axis in axes if axis.name == name)


def _tokens(config: Config) -> int:
    """Of a step."""
    return config.training.global_batch * config.data.sequence_length


def _refuse_twins(study: Study, found: list[tuple[StudyRun, _Resolved]]) -> None:
    """Runs that differ only in settings without effect would be trained twice."""
    seen: dict[Any, str] = {}
    for run, resolved in found:
        seeds = tuple(run.settings.get(key) for key in SEEDS)
        twin = seen.setdefault((resolved.effect, seeds), run.name)
        if twin != run.name:
            raise ConfigError(
                f"{study.file}: runs {twin} and {run.name} are the same training: what they differ in has no effect "
                "there; exclude one of them"
            )


def _refuse_ineffective(study: Study, resolved: list[_Resolved]) -> None:
    """A setting of the study that no run reads."""
    for key in study.settings:
        if all(key in own.idle for own in resolved):
            raise study.error(
                f"settings.{key}", f"has no effect in any run: {resolved[0].idle[key]}; leave it out"
            )
