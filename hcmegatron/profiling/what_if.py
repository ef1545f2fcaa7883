"""How long a step would take if one thing of it were other, by the simulator with measured costs. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from hcmegatron.profiling.measured_costs import MeasuredCosts, paired
from schedules import generate
from schedules.costs import Costs, Link, StageCosts
from schedules.generators import SCHEDULES
from schedules.schedule import Schedule
from schedules.simulate import simulate
from schedules.split_backward import split_backward


@dataclass(frozen=True)
class Change:
    """A step of so many seconds, were it not for `what`."""

    what: str
    seconds: float


def what_if(
    schedule: Schedule, measured: MeasuredCosts, reduction: float, lockstep: bool = False
) -> list[Change]:
    """What would help, the most helpful first. Everything outside of the pipeline stays as it is.

    Args:
        reduction: exposed seconds of sums over ranks after the pipeline.
    """
    costs, outside = measured.costs(lockstep), measured.outside

    def taken(other: Costs, plan: Schedule = schedule) -> float:
        return simulate(plan, other).makespan + outside

    found = [
        Change("messages between stages take no time", taken(replace(costs, link=Link()))),
        Change("the host takes no time between actions", taken(replace(measured, host=0.0).costs(lockstep))),
        Change("all stages take equally long", taken(replace(costs, stages=(_mean(costs.stages),)))),
    ]
    if any(measured.moved):
        shorter = (
            _scaled(stage, 1 - share) for stage, share in zip(costs.stages, measured.moved, strict=True)
        )
        found.append(Change("all-to-alls take no time", taken(replace(costs, stages=tuple(shorter)))))
    if reduction:
        found.append(Change("sums over ranks take no time", taken(costs) - reduction))
    found += [
        Change(f"parallel.schedule={plan.name}", taken(other, plan))
        for plan, other in _others(schedule, measured)
    ]
    return sorted(found, key=lambda change: change.seconds)


def _scaled(stage: StageCosts, factor: float) -> StageCosts:
    F, I, W, B = (factor * value for value in (stage.F, stage.I, stage.W, stage.B))
    return paired(StageCosts(F=F, I=I, W=W, B=B), factor * stage.FB, factor * stage.tail)


def _mean(stages: tuple[StageCosts, ...]) -> StageCosts:
    F, I, W, B, FB, tail = (
        fmean(getattr(stage, name) for stage in stages) for name in ("F", "I", "W", "B", "FB", "tail")
    )
    return paired(StageCosts(F=F, I=I, W=W, B=B), FB, tail)


def _others(schedule: Schedule, measured: MeasuredCosts) -> Iterator[tuple[Schedule, Costs]]:
    """Other schedules that take the sizes, with the model shared out equally over their stages. Those that split
    backward only where this one did, for what I and W take is not known otherwise; pairs overlap as here, and backwards
    that send are split if they are here."""
    total = [sum(getattr(stage, name) for stage in measured.stages) for name in ("F", "I", "W", "B", "FB")]
    for name, descriptor in SCHEDULES.items():
        if name == schedule.name or (descriptor.splits and not measured.splits):
            continue
        try:
            plan = generate(name, schedule.ranks, schedule.microbatches)
        except ValueError:  # sizes that it cannot take
            continue
        if split_backward(schedule, overlapped=True) == schedule:
            plan = split_backward(plan, measured.overlaps)
        F, I, W, B, FB = (value / plan.placement.model_stages for value in total)
        stage = paired(StageCosts(F=F, I=I, W=W, B=B), FB, 0.0)
        yield plan, replace(measured, stages=(stage,)).costs()
