"""Which cases the tests run: few and cheap, and together with as many values of the settings as cases can have."""

from __future__ import annotations

from functools import cache

from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.types import flatten
from tests.fuzz import space
from tests.fuzz.cases import Case, of_seed

SEEDS = range(240)
SLOW = (
    "kernels",
    "run.tensorboard",
    "run.peak_tflops",
)  # not for what they are: see their values in space.py


@cache
def dozen() -> tuple[int, ...]:
    """Twelve seeds, always the same: each adds the most new values for its processes."""
    found = {seed: of_seed(seed) for seed in SEEDS}
    cases = {seed: case for seed, case in found.items() if _quick(case)}
    chosen: list[int] = []
    seen: set[tuple] = set()
    while len(chosen) < 12:
        left = [seed for seed in cases if seed not in chosen]
        best = max(left, key=lambda seed: _gain(traits(cases[seed]) - seen) / _processes(cases[seed]))
        chosen.append(best)
        seen |= traits(cases[best])
    return tuple(chosen)


def traits(case: Case) -> set[tuple]:
    """(key, value) of every setting that has an effect and few values, in either layout."""
    found: set[tuple] = set()
    for config, ranks in ((case.config, case.ranks), (case.other, case.other_ranks)):
        parallel, idle = config.parallel, ineffective(config)
        found.add(("data parallel", ranks > parallel.pipeline * parallel.tensor))
        found |= {
            (key, str(value))
            for key, value in flatten(config).items()
            if key not in space.FIXED and key not in idle and key not in SLOW
            if key in space.STRUCTURE or len(set(map(str, space.values(key)))) < 10
        }
    return found


def _gain(new: set[tuple]) -> int:
    """What a run is built around counts more."""
    return sum(16 if key in space.STRUCTURE else 1 for key, _ in new)


def _quick(case: Case) -> bool:
    config = case.config
    return config.kernels != "triton" and not config.run.tensorboard and config.run.peak_tflops is not None


def _processes(case: Case) -> int:
    """Started for the three runs, and a constant for what does not depend on them."""
    return 2 * case.ranks + case.other_ranks + 1
