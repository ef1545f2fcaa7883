"""Configurations and plans that several tests use."""

from hcmegatron.config import load_config
from hcmegatron.planner.layout import make_layout
from hcmegatron.planner.machines import find_machine
from hcmegatron.planner.plan import changed_config
from hcmegatron.planner.rates import Assumptions, Rates
from hcmegatron.planner.stage_costs import Operations
from tests.ranks import ROOT

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v", "dualpipev", "dualpipe")


def config(name="mhc-27b", **changes):
    """A configuration with settings changed: section__key=value."""
    return changed_config(
        load_config(ROOT / f"configs/{name}.yaml"), {key.replace("__", "."): v for key, v in changes.items()}
    )


def pipelined(schedule, pipeline=4, **changes):
    """The 27B model over a pipeline, expert parallel within the node."""
    settings = {
        "parallel__pipeline": pipeline,
        "parallel__expert": 8,
        "parallel__schedule": schedule,
        "parallel__virtual": 2 if schedule == "interleaved" else None,
        "parallel__overlap": schedule.startswith("dualpipe"),
    }
    return config(**{**settings, **changes})


def operations(loaded, gpus, gpu="h100", **assumed):
    """The operations of a configuration on so many GPUs; their layout is in them."""
    where = make_layout(loaded, find_machine(gpu), gpus)
    return Operations(where, Rates(where.machine, Assumptions(**assumed), loaded.training.dtype))
