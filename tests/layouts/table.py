"""The table of layouts: the largest error of each against one process. `python -m tests.layouts.table` writes it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.config.schema import Config
from tests.layouts import steps
from tests.ranks import run_ranks

if TYPE_CHECKING:
    from tests.layouts.network import Outcome

KINDS = ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr")
ARCHITECTURES = {"dense": "dense, GQA", "moe": "MoE, MLA"}
DATA_PARALLEL = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
EP_TP = {"expert": 2, "tensor": 2, "sequence": True}
# name -> ranks, settings of `parallel`
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP 2": (2, {"tensor": 2}),
    "TP 2 + SP": (2, {"tensor": 2, "sequence": True}),
    "EP 2": (2, {"expert": 2}),
    "PP 2": (2, {"pipeline": 2}),
    "PP 2 x VPP 2": (2, {"pipeline": 2, "virtual": 2, "schedule": "megatron_interleaved"}),
    "PP 2, ZB-H1": (2, {"pipeline": 2, "schedule": "zb_h1"}),
    "PP 2, ZB-V": (2, {"pipeline": 2, "schedule": "zb_v"}),
    "PP 2, DualPipeV": (2, {"pipeline": 2, "schedule": "dualpipev"}),
    "PP 2, DualPipe": (2, {"pipeline": 2, "schedule": "dualpipe"}),
    "DP 2, distributed optimizer, overlapped": (2, DATA_PARALLEL),
    "TP 2 x PP 2": (4, {"tensor": 2, "pipeline": 2}),
    "TP 2 + SP x PP 2": (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
    "EP 2 x PP 2": (4, {"expert": 2, "pipeline": 2}),
    "EP 2 x TP 2 + SP": (4, EP_TP),
    "EP 2 x expert TP 2, TP 2 + SP": (4, EP_TP | {"expert_tensor": 2}),
}
# Megatron has experts with tensor parallelism only under sequence parallelism, and without experts EP is DP.
MISSING = {("TP 2", "moe"), ("TP 2 x PP 2", "moe")} | {
    (row, "dense") for row, (_, parallel) in ROWS.items() if "expert" in parallel
}
PRELOAD = ("tests.model.workers",)


def run(world_size: int, configs: list[Config], fault: str | None = None) -> list[list[Outcome]]:
    """Per rank, one step of every network."""
    return run_ranks(world_size, steps.steps, configs, fault, preload=PRELOAD, timeout=200)


def alone(configs: list[Config]) -> list[Outcome]:
    """The references: one process, and experts one after another."""
    configs = copy.deepcopy(configs)
    for config in configs:
        config.moe.grouped = False
    return run(1, configs)[0]


def largest_error(reference: Outcome, ranks: list[Outcome]) -> float:
    """The largest error over all ranks: of the loss and the gradient norm relative to themselves, of every element
    of gradients and updated parameters relative to the gradient norm (the update's gradient has norm 1)."""
    assert reference.norm > 0
    errors = [abs(one.loss - reference.loss) / reference.loss for one in ranks]
    errors += [abs(one.norm - reference.norm) / reference.norm for one in ranks]
    for which, scale in (("gradients", reference.norm), ("updated", 1.0)):
        whole = assemble(getattr(reference, which))
        seen = {place: np.zeros(tensor.shape, bool) for place, tensor in whole.items()}
        for one in ranks:
            for key, leading, offset, values in getattr(one, which):
                region = tuple(slice(o, o + size) for o, size in zip(offset, values.shape, strict=True))
                expected = whole[key, leading][region]
                seen[key, leading][region] = True
                errors.append(float(np.abs(values - expected).max()) / scale)
        unseen = [place for place, covered in seen.items() if not covered.all()]
        assert not unseen, f"no rank has all of {unseen}"
    assert all(np.isfinite(errors))
    return max(errors)


def assemble(found: list) -> dict[tuple, np.ndarray]:
    """Whole tensors from one process's parts: a fused projection comes in several."""
    extent: dict[tuple, np.ndarray] = {}
    for key, leading, offset, values in found:
        end = np.add(offset, values.shape)
        extent[key, leading] = np.maximum(extent.get((key, leading), end), end)
    whole = {place: np.full(size, np.nan, np.float32) for place, size in extent.items()}
    for key, leading, offset, values in found:
        whole[key, leading][tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))] = (
            values
        )
    return whole


def cells(
    row: str,
    references: dict[tuple[str, str], Outcome],
    networks: Any,
    kinds: tuple[str, ...] = KINDS,
) -> dict[tuple[str, str], float]:
    """The errors of one row, by (architecture, kind). networks: (architecture, kind, parallel) -> Config."""
    world_size, parallel = ROWS[row]
    there = [a for a in ARCHITECTURES if (row, a) not in MISSING]
    places = [(architecture, kind) for architecture in there for kind in kinds]
    ranks = run(world_size, [networks(*place, **parallel) for place in places])
    return {
        place: largest_error(references[place], [rank[index] for rank in ranks])
        for index, place in enumerate(places)
    }


def markdown(table: dict[str, dict[tuple[str, str], float]]) -> str:
    """The table for docs/layouts.md."""
    lines = [
        "| layout | network | " + " | ".join(KINDS) + " |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for row, found in table.items():
        for architecture, shown in ARCHITECTURES.items():
            if (architecture, KINDS[0]) in found:
                errors = " | ".join(f"{found[architecture, kind]:.1e}" for kind in KINDS)
                lines.append(f"| {row} | {shown} | {errors} |")
    return "\n".join(lines)


def main() -> None:
    """Run every row and print the table of docs/layouts.md."""
    from tests.small_configs import small

    places = [(architecture, kind) for architecture in ARCHITECTURES for kind in KINDS]
    references = dict(zip(places, alone([small(*place) for place in places]), strict=True))
    print(markdown({row: cells(row, references, small) for row in ROWS}))


if __name__ == "__main__":
    main()
