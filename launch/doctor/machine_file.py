"""What was measured, as a machine that `hcmegatron plan --gpu FILE` takes (planner/machines.py)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.planner.machines import Machine, of_device

DIGITS = 4  # significant ones
NOTHING_GBS, NOTHING_US = 1.0, 10.0  # of links where there is one rank alone, which sends nothing


def machine_text(figures: Mapping[str, Any]) -> str:
    """The file. Pure, but for the date in it.

    Of a GPU that the planner knows, what was not measured (peak, attention, the network of a single machine) is the
    planner's; of anything else, a link that was not measured is taken to be as the one that was.

    Args:
        figures: of an examination (examination.Report).

    Raises:
        ConfigError: devices were not measured.
    """
    if not figures.get("matmul_tflops") or "copy_tbs" not in figures:
        raise ConfigError("--write: no device was measured; mend the faults first")
    device = figures["device"]
    values = _values(figures, of_device(device))
    text = yaml.safe_dump({key: _short(value) for key, value in values.items()}, sort_keys=False)
    return f"# measured by hcmegatron doctor on {device}, {datetime.now():%Y-%m-%d %H:%M}\n{text}"


def _values(figures: Mapping[str, Any], known: Machine | None) -> dict[str, Any]:
    matmul = statistics.median(figures["matmul_tflops"].values())
    found: dict[str, Any] = {
        "matmul_tflops": min(matmul, known.peak_tflops) if known else matmul,
        "copy_tbs": figures["copy_tbs"],
        "memory_gib": figures["memory_gib"],
        "gpus_per_node": figures["ranks_per_node"],
    }
    # A message reached its share of the link: the planner multiplies by it again.
    share = known.link_share if known else 1.0
    for what, link in (("within", "nvlink"), ("between", "network")):
        if links := [measured for _, _, measured in figures.get(what, ())]:
            found[f"{link}_gbs"] = statistics.median(one.gbs for one in links) / share
            found[f"{link}_us"] = statistics.median(one.us for one in links)
    if known:
        return {"extends": known.name, **found}
    for link, other in (("nvlink", "network"), ("network", "nvlink")):
        for unit, nothing in (("gbs", NOTHING_GBS), ("us", NOTHING_US)):
            found.setdefault(f"{link}_{unit}", found.get(f"{other}_{unit}", nothing))
    return {"peak_tflops": matmul, **found, "link_share": share, "context_gib": 0.0, "communicator_gib": 0.0}


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
