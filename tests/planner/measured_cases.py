"""Measured costs that are easily added."""

from hcmegatron.config import load_config
from hcmegatron.planner import measured
from hcmegatron.planner.machines import Machine
from hcmegatron.planner.measured import Measured
from hcmegatron.planner.plan import changed_config
from tests.ranks import ROOT

FILE = str(ROOT / "configs/quickstart.yaml")


HERE = Machine("here", 0.1, 0.1, 8, 0.02, 2, 1.0, 1.0)


def config(**changes):
    """The quickstart under 1F1B: two stages, four micro-batches."""
    settings = {"parallel.schedule": "1f1b"} | {key.replace("__", "."): v for key, v in changes.items()}
    return changed_config(load_config(FILE), settings)


def costs(loaded=None, **settings):
    """Of two stages, in seconds that are easily added."""
    times = {"forward": [2.0, 3.0], "input": [1.0, 2.0], "weight": [1.0, 1.0], "backward": [2.0, 3.0]}
    hop = {"latency": 0.5, "occupied": 0.25, "hop_bytes": 262144.0, "streams": 4}
    return Measured(
        {**times, **hop, **settings},
        forward_only=[1.5, 2.5],
        after={"gradient reduction": 0.5, "optimizer": 2.0},
        others={"copy": {"bytes": 8, "seconds": 0.5}},
        shape=measured.shape(loaded or config()),
        ranks=2,
        date="2026-11-26 15:00",
        versions={"torch": "2.13.0"},
        machine=HERE,
    )


def written(path, found):
    path.write_text(found.as_yaml())
    return path
