"""A fuzzed case: a configuration, its number of ranks, and another layout of the same model. No torch.

    case = of_seed(17)
    print(case)                  # the arguments that repeat it: python -m tests.fuzz --case ...
    Case.parse(str(case).split())

Fields are drawn one by one and then mended: a ConfigError names the settings that do not fit, and one of them is
drawn again. So a new rule of config.checks needs no line here.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hcmegatron.config.checks import check_config, check_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.load import read_config, scalar
from hcmegatron.config.schema import Config
from hcmegatron.config.types import defaults, flatten, leaves
from tests.fuzz import space

WORLDS = (1, 2, 2, 2, 4, 4, 4, 4)  # ranks: the more, the more can go wrong
# Triton's interpreter takes seconds for what a compiled kernel does in microseconds.
SLOW = {"model.layers": 2, "data.sequence_length": 8, "training.micro_batch": 1, "training.global_batch": 2}
# What another layout of the same model may change. The rest is the model, its data and its training.
LAYOUT = (
    *(key for key in leaves() if key.startswith(("parallel.", "recompute.")) and key not in space.FIXED),
    "training.micro_batch",
    "moe.grouped",
    "moe.dispatcher",
)
_KEY = re.compile(r"\b[a-z]+\.[a-z_0-9]+\b|\bkernels\b|\bimplementation\b")
_MENDS = 200  # of one configuration, before it is given up
THEN = "--then"


@dataclass(frozen=True)
class Case:
    """Train `config` on `ranks` for two steps, resume; resume `other` on `other_ranks` from the same checkpoint."""

    config: Config
    ranks: int
    other: Config
    other_ranks: int

    def __str__(self) -> str:
        return " ".join(shlex.quote(word) for word in self.arguments())

    def arguments(self) -> list[str]:
        """What `python -m tests.fuzz --case` takes: ranks and overrides of the defaults, then those of the other."""
        first = _overrides(defaults() | _fixed(), flatten(self.config))
        second = _overrides(flatten(self.config), flatten(self.other))
        return [str(self.ranks), *first, THEN, str(self.other_ranks), *second]

    @classmethod
    def parse(cls, arguments: list[str]) -> Case:
        """The inverse of `arguments`.

        Raises:
            ConfigError: an override that is none.
        """
        middle = arguments.index(THEN) if THEN in arguments else len(arguments)
        (ranks, *first), (other_ranks, *second) = (
            arguments[:middle],
            arguments[middle + 1 :] or arguments[:middle],
        )
        config = _changed(build(defaults() | _fixed()), first)
        return cls(config, int(ranks), _changed(config, second), int(other_ranks))


def of_seed(seed: int) -> Case:
    """The case of a seed: always the same one."""
    found: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=2,  # the first that hypothesis tries is the simplest there is, whatever the seed
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def keep(case: Case) -> None:
        found.append(case)

    keep()
    return found[-1]


@st.composite
def cases(draw: Callable) -> Case:
    """Valid cases."""
    draw(st.integers(0, 2**32))  # what is drawn first differs from example to example
    ranks, values = draw(st.sampled_from(WORLDS)), _fixed()
    values |= {key: draw(space.strategy(key)) for key in space.drawn()}
    if values["kernels"] == "triton":
        values |= SLOW
    _draw_layout(draw, values, ranks)
    config = _mended(draw, values, ranks, space.drawn())

    other_ranks, changed = draw(st.sampled_from(WORLDS)), flatten(config)
    # Megatron balances the experts' load within a micro-batch (moe.aux_loss), so its size is part of the model there.
    free = [key for key in LAYOUT if key != "training.micro_batch" or not config.moe.aux_loss]
    changed |= {key: draw(space.strategy(key)) for key in free}
    _draw_layout(draw, changed, other_ranks)
    other = _mended(draw, changed, other_ranks, free)
    return Case(config, ranks, other, other_ranks)


def _fixed() -> dict[str, Any]:
    """What every case shares, by dotted key."""
    return {key: value for key, (value, _) in space.FIXED.items()}


def build(values: dict[str, Any]) -> Config:
    """A configuration of these values."""
    config = Config()
    for key, value in values.items():
        put(config, key, value)
    return config


def put(config: Config, key: str, value: Any) -> None:
    """Set a setting by its dotted key."""
    section, _, leaf = key.rpartition(".")
    setattr(getattr(config, section) if section else config, leaf, copy.deepcopy(value))


def fits(config: Config, ranks: int) -> None:
    """ConfigError where the settings do not fit together or do not fit `ranks` ranks."""
    check_config(config)
    check_world(config, ranks)


def _draw_layout(draw: Callable, values: dict[str, Any], ranks: int) -> None:
    """Sizes whose products divide the number of ranks: drawn one by one hardly any would."""

    def size(key: str, left: int) -> int:
        values[key] = draw(st.sampled_from([n for n in space.values(key) if left % n == 0]))
        return values[key]

    left = ranks // size("parallel.pipeline", ranks)
    size("parallel.tensor", left)
    if values["moe.experts"]:
        experts = "parallel.expert", "parallel.expert_tensor"
        first, second = draw(st.sampled_from((experts, experts[::-1])))  # what comes first leaves little
        size(second, left // size(first, left))
    else:
        values["parallel.expert"] = values["parallel.expert_tensor"] = 1
    if "interleaved" not in values["parallel.schedule"]:
        values["parallel.virtual"] = None


def _mended(draw: Callable, values: dict[str, Any], ranks: int, free: Iterable[str]) -> Config:
    """The values as a valid configuration, after drawing settings of `free` again where they do not fit."""
    for _ in range(_MENDS):
        config = build(values)
        try:
            fits(config, ranks)
        except ConfigError as error:
            named = [key for key in dict.fromkeys(_KEY.findall(str(error))) if key in free]
            loose = [key for key in named if key not in space.STRUCTURE] or named
            hypothesis.assume(loose)
            key = draw(st.sampled_from(loose))
            values[key] = draw(space.strategy(key))
        else:
            # What has no effect only makes a case longer to read; the rest stays as it was drawn.
            idle = {key: defaults()[key] for key in ineffective(config) if key in free}
            tidy = build(values | idle)
            try:
                fits(tidy, ranks)
            except ConfigError:
                return config
            return tidy
    hypothesis.reject()


def _overrides(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [f"--{key}={scalar(value)}" for key, value in after.items() if value != before[key]]


def _changed(config: Config, overrides: list[str]) -> Config:
    """A copy of `config` with overrides on top."""
    given, sources = read_config(None, overrides)
    changed, values = copy.deepcopy(config), flatten(given)
    for key in sources:
        put(changed, key, values[key])
    return changed
