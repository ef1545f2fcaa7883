"""The pipeline schedule: as the planner simulates it, as a profiled step ran it, and simulated with what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from hcmegatron.config import Config, ConfigError
from hcmegatron.planner.machines import Machine, check_machine
from hcmegatron.planner.measured import fitting
from hcmegatron.planner.plan import make_plan
from hcmegatron.planner.scheduled import training_schedule
from hcmegatron.profiling.measured_costs import measured_costs
from hcmegatron.report.charts import Part, Picture, Section, Words
from hcmegatron.report.inputs.executed import executed, timeline
from hcmegatron.report.inputs.run import Run
from schedules.draw import to_svg
from schedules.simulate import simulate
from schedules.timeline import Simulation

MOST = 1_500_000  # bytes of a picture
TIMES = ("start", "forward_end", "backward_start", "end", "busy", "tail")


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
    """Simulated with planned times; as it ran, and simulated with measured times."""
    config = run.config
    if config is None:
        return [
            Words((f"{run.name}: no schedule is drawn, since this version does not take its configuration.",))
        ]
    if config.parallel.pipeline == 1:
        return []
    found: list[Picture | Words] = []
    for what, draw in (("simulated", _planned), ("drawn of the profile", _measured)):
        try:
            found += draw(run, config, suffix)
        except (ConfigError, ValueError) as error:
            found.append(Words((f"{run.name}: no schedule is {what}: {error}",)))
    return found


def _planned(run: Run, config: Config, suffix: str) -> list[Picture | Words]:
    plan = run.plan or {}
    machine, ranks = _machine(plan.get("machine")), plan.get("gpus")
    if machine is None or type(ranks) is not int:
        return [Words((f"{run.name}: no schedule is simulated, since no plan.json can be read.",))]
    costs = fitting(config, ranks) if plan.get("measured") else None
    simulation = make_plan(config, machine, ranks, measured=costs).time.simulation
    unknown = " Its times are those of an H100, for nothing is known of this machine."
    times = "" if costs or machine.name != "CPU" else unknown
    asked = plan.get("microbatches")
    fewer = (
        f" {simulation.schedule.microbatches} of {asked} micro-batches are shown: the steady state repeats."
        if type(asked) is int and asked > simulation.schedule.microbatches
        else ""
    )
    svg, note = to_svg(_in_ms(simulation)), f"Times in milliseconds.{times}{fewer}"
    return [_bounded(Picture(f"schedule{suffix}", "Simulated with planned times", svg, note))]


def _measured(run: Run, config: Config, suffix: str) -> list[Picture | Words]:
    """What a profile knows: the step as it ran, and a simulation with what its actions took."""
    profile = run.profile
    if profile is None:
        return []
    microbatches, step = profile.get("microbatches"), profile.get("step")
    found = timeline(run.records, step if type(step) is int else None)
    if found is None or type(microbatches) is not int:
        return [Words((f"{run.name}: profile/ does not have the records of all ranks of a step.",))]
    ordered = training_schedule(config, microbatches)
    ran = executed(found, ordered)
    # of a version that had pairs whole, or all backwards, whose configuration does not say so
    if ran is None:
        ordered = training_schedule(config, microbatches, lockstep=True)
        ran = executed(found, ordered)
    if ran is None:
        whole = replace(config, parallel=replace(config.parallel, split_backward=False))
        ordered = training_schedule(whole, microbatches)
        ran = executed(found, ordered)
    if ran is None:
        return [Words((f"{run.name}: profile/ is of another schedule than the configuration's.",))]
    measured = measured_costs([found], ordered)
    simulation = simulate(ordered, measured.costs())
    note = "Every action of every rank in a profiled step, waits included, in milliseconds on rank 0's clock."
    same = (
        f"Every action as long as its kind and stage took in the median of step {found.step}, in milliseconds; a "
        f"message takes {1e3 * measured.link.latency:.3g}, the host {1e3 * measured.host:.3g} for each action. Before "
        f"and after its pipeline a step takes {1e3 * measured.outside:,.3g} more."
    )
    return [
        _bounded(Picture(f"schedule-executed{suffix}", "As it ran", to_svg(_in_ms(ran)), note)),
        _bounded(
            Picture(
                f"schedule-measured{suffix}",
                "Simulated with measured times",
                to_svg(_in_ms(simulation)),
                same,
            )
        ),
    ]


def _in_ms(simulation: Simulation) -> Simulation:
    """A simulation in seconds as one in milliseconds."""
    timeline = tuple(
        tuple(timed._replace(**{name: 1e3 * getattr(timed, name) for name in TIMES}) for timed in actions)
        for actions in simulation.timeline
    )
    return replace(simulation, timeline=timeline)


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
