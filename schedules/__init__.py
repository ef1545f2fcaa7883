"""Pipeline schedules as data: generated, validated, simulated, drawn. Knows no model and imports no torch.

    schedule = generate("dualpipe", ranks=8, microbatches=20)
    validate(schedule)
    result = simulate(schedule, Costs((StageCosts(F=1, I=1, W=1),), Link(latency=0.25)))
    print(result.makespan, result.bubble_fraction)

``schedules.draw`` makes pictures of the result, ``schedules.memory`` bytes over time, ``schedules.runtime``
executes.
"""

from schedules.actions import Action, Kind, parse_action
from schedules.costs import Costs, Link, StageCosts
from schedules.csv_form import from_csv, to_csv
from schedules.generators import GENERATORS, generate
from schedules.placement import Placement
from schedules.schedule import Message, Schedule, ScheduleStep, lower
from schedules.simulate import simulate
from schedules.split_backward import split_backward
from schedules.timeline import Simulation
from schedules.validate import InvalidSchedule, Problem, problems, validate

__all__ = [
    "GENERATORS",
    "Action",
    "Costs",
    "InvalidSchedule",
    "Kind",
    "Link",
    "Message",
    "Placement",
    "Problem",
    "Schedule",
    "ScheduleStep",
    "Simulation",
    "StageCosts",
    "from_csv",
    "generate",
    "lower",
    "parse_action",
    "problems",
    "simulate",
    "split_backward",
    "to_csv",
    "validate",
]
