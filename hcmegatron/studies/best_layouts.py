"""The best layout of every shape of a study, searched as `hcmegatron plan --search` does."""

from __future__ import annotations

from hcmegatron.config.load import scalar
from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.planner.rates import Assumptions
from hcmegatron.planner.search import CHOSEN, search_layouts
from hcmegatron.studies.plan import machine_of, shape
from hcmegatron.studies.study import Study


class BestLayouts:
    """Gives a configuration its best layout on the study's machine, and remembers which. One that fits in none keeps
    its own, whose plan says why it does not fit."""

    def __init__(self, study: Study) -> None:
        self.machine, self.gpus = machine_of(study), study.machine.gpus
        self.found: dict[str, tuple[Config, Config]] = {}

    def __call__(self, config: Config) -> Config:
        """The configuration with the settings of planner.search.CHOSEN of its best layout."""
        key = shape(config)
        if key not in self.found:
            result = search_layouts(config, self.machine, self.gpus, Assumptions(), most=1)
            best = result.best[0].layout.config if result.best else config
            self.found[key] = config, best
        return self.found[key][1]

    def lines(self) -> list[str]:
        """What to write into the file for it, each shape's own words."""
        lines = ["searched; to run so, write beside the point of size or kind:"]
        for config, best in self.found.values():
            before, after = flatten(config), flatten(best)
            changed = {key: after[key] for key in sorted(CHOSEN) if after[key] != before[key]}
            name = f"{config.connection.kind}, {config.model.layers} layers of {config.model.hidden_size}"
            words = ", ".join(f"{key}: {scalar(value)}" for key, value in changed.items())
            lines.append(f"  {name}: {words or 'as it is'}")
        return lines
