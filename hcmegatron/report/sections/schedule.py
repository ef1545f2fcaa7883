"""The pipeline schedule: as the planner simulates it, as a profiled step ran it, and simulated with what that took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hcmegatron.config import Config, ConfigError
from hcmegatron.planner.machines import Machine, check_machine
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.scheduled import training_schedule
from hcmegatron.report.charts import Part, Picture, Section, Words
from hcmegatron.report.inputs.executed import executed
from hcmegatron.report.inputs.run import Run
from schedules.costs import Costs, Link, StageCosts
from schedules.draw import to_svg
from schedules.schedule import Schedule
from schedules.simulate import simulate
from schedules.timeline import Simulation

MOST = 1_500_000  # bytes of a picture
TIMES = ("start", "forward_end", "backward_start", "end", "busy", "tail")
EXECUTED = "schedule*.svg"  # what a run or a profile may have drawn itself


def schedule(runs: Sequence[Run]) -> Section:
    """The pictures of every run that has a pipeline; runs with the same ones share them."""
    words: list[Part] = []
    found: dict[tuple[str, str], tuple[Picture, list[str]]] = {}
    for number, run in enumerate(runs):
        for part in pictures(run, f"-{number + 1}" if len(runs) > 1 else ""):
            if isinstance(part, Words):
                words.append(part)
            else:
                found.setdefault((part.title, part.svg), (part, []))[1].append(run.name)
    shared = [
        replace(picture, title=f"{picture.title}: {', '.join(names)}") if len(runs) > 1 else picture
        for picture, names in found.values()
    ]
    parts: list[Part] = [*words, *shared]
    if not parts:
        parts.append(Words(("No run has a pipeline.",)))
    return Section("schedule", "Schedule", tuple(parts))


def pictures(run: Run, suffix: str) -> list[Picture | Words]:
    """Simulated with planned times, with measured ones, and what the run has drawn."""
    config = run.config
    if config is None:
        return [
            Words((f"{run.name}: no schedule is drawn, since this version does not take its configuration.",))
        ]
    if config.parallel.pipeline == 1:
        return []
    found: list[Picture | Words] = []
    try:
        found.append(_planned(run, config, suffix))
        found += _measured(run, config, suffix)
    except (ConfigError, ValueError) as error:
        found.append(Words((f"{run.name}: no schedule is drawn: {error}",)))
    for folder in (run.path, run.path / "profile"):
        for file in sorted(folder.glob(EXECUTED)):
            found.append(_kept(run, file, f"{suffix}-{len(found) + 1}"))
    return found


def _planned(run: Run, config: Config, suffix: str) -> Picture | Words:
    plan = run.plan or {}
    machine, ranks = _machine(plan.get("machine")), plan.get("gpus")
    if machine is None or type(ranks) is not int:
        return Words((f"{run.name}: no schedule is simulated, since there is no plan.json.",))
    simulation = make_plan(config, machine, ranks).time.simulation
    unknown = " Its times are those of an H100, for nothing is known of this machine." * (
        machine.name == "CPU"
    )
    asked = plan.get("microbatches")
    fewer = (
        f" {simulation.schedule.microbatches} of {asked} micro-batches are shown: the steady state repeats."
        if type(asked) is int and asked > simulation.schedule.microbatches
        else ""
    )
    return _bounded(
        Picture(
            f"schedule{suffix}",
            "Simulated with planned times",
            to_svg(_in_ms(simulation)),
            f"Times in milliseconds.{unknown}{fewer}",
        )
    )


def _measured(run: Run, config: Config, suffix: str) -> list[Picture | Words]:
    """What a profile knows: the step as it ran, and a simulation with what its actions took."""
    profile, plan = run.profile, run.plan or {}
    if profile is None:
        return []
    microbatches = profile.get("microbatches", plan.get("microbatches"))
    if type(microbatches) is not int:
        return [
            Words((f"{run.name}: neither the profile nor plan.json says how many micro-batches a step has.",))
        ]
    ordered = training_schedule(config.parallel, microbatches)
    found: list[Picture | Words] = []
    step = profile.get("step")
    if ran := executed(run.path, ordered, step if type(step) is int else None):
        note = "Every action of every rank in a profiled step, waits included, in milliseconds on rank 0's clock."
        found.append(_bounded(Picture(f"schedule-executed{suffix}", "As it ran", to_svg(ran), note)))
    stages = measured_costs(profile.get("actions"), ordered)
    if stages is None:
        return [*found, Words((f"{run.name}: profile/summary.json does not have the times of every stage.",))]
    hop = profile.get("hop_ms")
    latency = float(hop) if isinstance(hop, int | float) and 0 <= hop < math.inf else 0.0
    note = (
        "Every action as long as its kind and stage took in the median of the profiled steps, in milliseconds; "
        f"a message takes {latency:.3g}."
    )
    svg = to_svg(simulate(ordered, Costs(stages, Link(latency))))
    return [
        *found,
        _bounded(Picture(f"schedule-measured{suffix}", "Simulated with measured times", svg, note)),
    ]


def measured_costs(actions: Any, ordered: Schedule) -> tuple[StageCosts, ...] | None:
    """What each model stage's actions took, in milliseconds; None where a stage's forward or backward is missing.

    Args:
        actions: of profile/summary.json: action (F, B, I, W, FB), stage, measured_ms.
    """
    where = ordered.placement
    took: dict[tuple[int, str], list[float]] = {}
    for entry in actions if isinstance(actions, list) else ():
        if not isinstance(entry, Mapping):
            continue
        stage, kind, ms = entry.get("stage"), entry.get("action"), entry.get("measured_ms")
        if (
            type(stage) is int
            and 0 <= stage < where.stages
            and isinstance(ms, int | float)
            and 0 <= ms < math.inf
        ):
            took.setdefault((where.model_stage(stage), str(kind)), []).append(float(ms))
    stages = []
    for stage in range(where.model_stages):
        F, B, I, W, FB = (_mean(took.get((stage, kind))) for kind in ("F", "B", "I", "W", "FB"))
        if math.isnan(B) and not math.isnan(I + W):
            B = I + W
        if math.isnan(F):
            F = max(0.0, FB - B)
        if math.isnan(B):
            B = FB - F
        if math.isnan(F + B):
            return None
        I, W = (B / 2 if math.isnan(I) else I), (B / 2 if math.isnan(W) else W)
        FB = F + B if math.isnan(FB) else min(max(FB, F, B), F + B)
        stages.append(StageCosts(F=F, I=I, W=W, B=max(0.0, B), FB=FB))
    return tuple(stages)


def _in_ms(simulation: Simulation) -> Simulation:
    """A simulation in seconds as one in milliseconds."""
    timeline = tuple(
        tuple(timed._replace(**{name: 1e3 * getattr(timed, name) for name in TIMES}) for timed in actions)
        for actions in simulation.timeline
    )
    return replace(simulation, timeline=timeline)


def _kept(run: Run, file: Path, suffix: str) -> Picture | Words:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return Words((f"{run.name}: {file.name} cannot be read.",))
    return _bounded(Picture(f"{file.stem}{suffix}", file.name, text))


def _bounded(picture: Picture) -> Picture | Words:
    size = len(picture.svg.encode())
    if size <= MOST:
        return picture
    return Words(
        (
            f"{picture.title}: {size / 1e6:.1f} MB, too large for this page; hcmegatron schedule --svg draws it.",
        )
    )


def _machine(described: Any) -> Machine | None:
    """The machine of plan.json. ConfigError where there can be none such."""
    if not isinstance(described, dict):
        return None
    known = {field.name for field in fields(Machine)} - {"name"}
    figures = {name: value for name, value in described.items() if name in known}
    if not all(isinstance(value, int | float) for value in figures.values()):
        return None
    try:
        return check_machine(Machine(str(described.get("name")), **figures), "plan.json")
    except TypeError:
        return None


def _mean(values: list[float] | None) -> float:
    return sum(values) / len(values) if values else math.nan
