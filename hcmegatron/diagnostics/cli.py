"""The verb `diagnostics`: one observation of a run, as text or JSON. No torch."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hcmegatron.config import ConfigError
from hcmegatron.diagnostics.files import LINES, Observation, arrays_file, read_arrays, read_observations

WIDTH = 120  # of the table, in characters
# Arrays [S] that are shown, a column each: what is in docs/diagnostics.md -> the head of its column.
COLUMNS = {
    "gain_forward": "gain",
    "gain_backward": "gain back",
    "composite_forward": "composite",
    "composite_backward": "composite back",
    "gate_saturation": "saturated",
    "logit_max": "|logit|",
    "doubly_stochastic_error": "row, column sums off by",
    "gradient_norm": "gradient norm",
    "ablation_sublayer": "loss without",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.usage = "hcmegatron diagnostics RUN [--step N] [--json]"
    parser.description = (
        "What the connections did after a step: the newest observation of a run, or that of a step, its figures over "
        "all sub-layers and by sub-layer. docs/diagnostics.md says what each is; `hcmegatron report` draws all."
    )
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument(
        "--step", metavar="N", type=int, help="the observation after this step, not the newest"
    )
    parser.add_argument(
        "--json", action="store_true", help="everything, arrays included, as one line of JSON"
    )


def main(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        ConfigError: the run has no such observation, or its arrays are damaged.
    """
    steps, observation = _chosen(options.run_directory, options.step)
    try:
        arrays = read_arrays(options.run_directory, observation.step)
    except ValueError as error:
        raise ConfigError(f"{error}; --step has the others: {_listed(steps)}") from None
    if options.json:
        print(_as_json(observation, arrays))
    else:
        print("\n".join(lines(options.run_directory, steps, observation, arrays)))
    return 0


def lines(run: Path, steps: list[int], observation: Observation, arrays: dict[str, np.ndarray]) -> list[str]:
    """An observation as text.

    Args:
        steps: of all observations of the run.
        arrays: of this one; empty where a spike alone was looked at.
    """
    found = [
        f"{run}, after step {observation.step}: {observation.tokens} tokens observed in {observation.seconds:.2f} s; "
        f"{len(steps)} observations: {_listed(steps)}",
        "",
    ]
    width = max(map(len, observation.scalars), default=0)
    found += [f"{name:<{width}}  {value:.6g}" for name, value in observation.scalars.items()]
    if "sublayers" in arrays:
        found += ["", *_by_sublayer(arrays)]
    else:
        found += ["", f"no figures by sub-layer: there is no {arrays_file(run, observation.step)}"]
    return found + [f"warning: {warned.message}" for warned in observation.warnings]


def _chosen(run: Path, step: int | None) -> tuple[list[int], Observation]:
    """The steps of all observations, and the one of `step`, or the newest."""
    observations = {each.step: each for each in read_observations(run)}
    if not observations:
        what = f"no observation in {LINES}" if run.is_dir() else "there is no such directory"
        raise ConfigError(f"{run}: {what}; give a run with diagnostics.every above 0 and held-out text")
    steps = list(observations)
    if step is not None and step not in observations:
        raise ConfigError(f"--step {step}: {run} has no observation after it; it has {_listed(steps)}")
    return steps, observations[steps[-1] if step is None else step]


def _listed(steps: list[int]) -> str:
    """Steps in words, the middle of many left out."""
    words = [str(step) for step in steps]
    return "after steps " + ", ".join(words if len(words) <= 8 else [*words[:3], "...", *words[-3:]])


def _by_sublayer(arrays: dict[str, np.ndarray]) -> list[str]:
    names = [str(name) for name in arrays["sublayers"]]
    shown = {
        head: arrays[name]
        for name, head in COLUMNS.items()
        if arrays.get(name, np.empty(0)).shape == (len(names),)
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("sub-layer", justify="left")
    for head in shown:
        table.add_column(head, justify="right")
    for index, name in enumerate(names):
        table.add_row(name, *(f"{values[index]:.4g}" for values in shown.values()))
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _as_json(observation: Observation, arrays: dict[str, np.ndarray]) -> str:
    """Its line of diagnostics.jsonl, and its arrays by name; what is not finite is null in both."""
    return json.dumps(
        json.loads(observation.line) | {"arrays": {k: _plain(v.tolist()) for k, v in arrays.items()}}
    )


def _plain(values: object) -> object:
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
