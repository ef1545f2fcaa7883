"""Costs that were measured (hcmegatron/measure): their file, the configuration that it fits, and what simulates a step.

The file is one of `hcmegatron schedule --costs` too: seconds of F, I, W and B by stage and of a hop stand at its top,
under the keys of schedules/cost_config.py; `measured` holds where, when and of what, and what follows the pipeline.
Imports no torch.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES
from hcmegatron.config.schema import Config, splits_backward
from hcmegatron.config.types import Dumper, flatten
from hcmegatron.planner.layers import has_experts
from hcmegatron.planner.machines import Machine, check_machine
from schedules.cost_config import costs_for, read_cost_config
from schedules.costs import Costs
from schedules.schedule import Schedule

FORMAT = 1
# What the times of a stage, of a message or of the optimizer depend on. The schedule may be another of as many stages.
_OF_TIMES = """
    parallel.pipeline parallel.tensor parallel.sequence parallel.expert parallel.expert_tensor parallel.overlap
    parallel.distributed_optimizer parallel.overlap_grad_reduce parallel.overlap_param_gather data.sequence_length
    training.micro_batch training.dtype training.threads recompute.mode recompute.block_length recompute.modules
    implementation kernels muon.newton_schulz"""
SECTIONS = ("model", "mla", "moe", "connection")
STAGES = "model stages"
COPIES = (
    "copies of a stage"  # DualPipe's two: their sum and the second one's optimizer are in what was measured
)


@dataclass(frozen=True)
class Measured:
    """What the operations of a configuration took. Seconds and bytes.

    Attributes:
        settings: for schedules.cost_config: forward, input, weight, backward and, of pairs, overlapped, each by model
            stage; of a message `latency`, `occupied`, and its hop_bytes and streams.
        forward_only: of an evaluation, by model stage.
        after: of a step's parts outside the pipeline (step_time.PARTS).
        others: bytes and seconds of collectives over all ranks and of a copy, which no step is made of.
        shape: what the configuration was, by dotted key.
        ranks: that were busy at the same time, and `date` when.
        machine: theirs.
    """

    settings: dict[str, Any]
    forward_only: list[float]
    after: dict[str, float]
    others: dict[str, dict[str, float]]
    shape: dict[str, Any]
    ranks: int
    date: str
    versions: dict[str, str]
    machine: Machine

    def require(self, config: Config, ranks: int, path: str) -> None:
        """The configuration and the number of ranks are those that were measured.

        Raises:
            ConfigError: they are others, with the first key that differs.
        """
        here = shape(config)
        for key in [*here, *self.shape]:
            if self.shape.get(key) != here.get(key):
                raise ConfigError(
                    f"{path} does not fit: {key} = {self.shape.get(key)} when it was measured, {here.get(key)} here; "
                    "measure again, with hcmegatron plan --measure"
                )
        if ranks != self.ranks:
            raise ConfigError(
                f"{path} does not fit: it was measured on {self.ranks} ranks, and these are {ranks}; measure again, "
                "with hcmegatron plan --measure"
            )
        always = SCHEDULES[config.parallel.schedule].splits
        if (always or splits_backward(config)) and "weight" not in self.settings:
            unless = "" if always else " unless parallel.split_backward = false"
            raise ConfigError(
                f"{path} does not fit: it was measured under a schedule of Megatron's, without I and W, which "
                f"parallel.schedule = {config.parallel.schedule} has{unless}; measure again, with hcmegatron plan "
                "--measure"
            )

    def costs(self, config: Config, schedule: Schedule) -> Costs:
        """What the simulator needs for a schedule of the configuration.

        Raises:
            ConfigError: the times are not what a schedule takes.
        """
        moe = any(has_experts(config, layer) for layer in range(config.model.layers))
        settings = {
            **self.settings,
            "sending": "lockstep" if config.parallel.schedule in MEGATRONS else "early",
            "lead": 0.0 if config.parallel.overlap and moe else 1.0,  # as pipeline.overlap lays pairs out
        }
        try:
            return costs_for(schedule, settings)
        except ValueError as error:
            raise ConfigError(
                f"measured costs: {error}; measure again, with hcmegatron plan --measure"
            ) from None

    def as_yaml(self) -> str:
        """The file."""
        own = {name: _rounded(getattr(self, name)) for name in _META if name != "shape"}
        machine = _rounded(asdict(self.machine))
        measured = {"format": FORMAT, **own, "shape": self.shape, "machine": machine}
        content = {**_rounded(self.settings), "measured": measured}
        words = (
            f"# Seconds, measured by hcmegatron plan --measure on {self.machine.name}, {self.ranks} ranks at once, "
            f"{self.date}.\n# For plan --costs, schedule --costs and parallel.costs.\n"
        )
        return words + yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110)


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which is more than was measured."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


_META = tuple(f.name for f in fields(Measured) if f.name not in ("settings", "machine"))


def shape(config: Config) -> dict[str, Any]:
    """What times depend on, by dotted key; settings that nothing reads are left out."""
    values, idle = flatten(config), ineffective(config)
    found = {
        key: value
        for key, value in values.items()
        if key not in idle and (key in _OF_TIMES.split() or key.partition(".")[0] in SECTIONS)
    }
    where = SCHEDULES[config.parallel.schedule].placement(config.parallel.pipeline, config.parallel.virtual)
    return {**found, STAGES: where.model_stages, COPIES: len(where.paths)}


def read(path: str | Path) -> Measured:
    """The costs in a file.

    Raises:
        ConfigError: it cannot be read, or was not written by `plan --measure`.
    """
    try:
        settings = read_cost_config(Path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    meta = settings.pop("measured", None)
    if not isinstance(meta, dict):
        raise ConfigError(f"costs file {path}: was not measured; write one with hcmegatron plan --measure")
    if meta.get("format") != FORMAT:
        raise ConfigError(
            f"costs file {path}: is of format {meta.get('format')}, this version reads {FORMAT}; measure again, with "
            "hcmegatron plan --measure"
        )
    known = (*_META, "machine")
    for name in known:
        if name not in meta:
            raise ConfigError(f"costs file {path}: measured.{name} is missing; measure again")
    for name in meta:
        if name not in (*known, "format"):
            near = difflib.get_close_matches(str(name), known, 1)
            raise ConfigError(
                f"costs file {path}: measured.{name} is unknown; "
                + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
            )
    for name in ("forward", "backward"):
        if name not in settings:
            raise ConfigError(f"costs file {path}: {name} is missing; measure again")
    for name in ("after", "others", "shape", "versions"):
        if not isinstance(meta[name], dict):
            raise ConfigError(
                f"costs file {path}: measured.{name} = {meta[name]}: not a mapping; measure again"
            )
    for name, seconds in meta["after"].items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise ConfigError(
                f"costs file {path}: measured.after.{name} = {seconds}: 0 or more; measure again"
            )
    try:
        here = check_machine(Machine(**meta["machine"]), f"costs file {path}: measured.machine")
        return Measured(settings, **{name: meta[name] for name in _META}, machine=here)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"costs file {path}: measured.machine: {error}; measure again") from None


def fitting(config: Config, ranks: int) -> Measured | None:
    """Those of parallel.costs; None where it is null.

    Raises:
        ConfigError: the file cannot be read, or is of another configuration.
    """
    path = config.parallel.costs
    if path is None:
        return None
    found = read(path)
    found.require(config, ranks, f"parallel.costs = {path}")
    return found
