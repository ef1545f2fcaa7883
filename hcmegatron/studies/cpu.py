"""What a step takes on CPU cores, where small networks spend it on calls and not on arithmetic: a sum with measured
terms, which `python -m tools.cpu_rates` finds."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import compose_file
from hcmegatron.config.schema import Config
from hcmegatron.planner import counts
from hcmegatron.studies.tree import Entry, refuse_unknown


@dataclass(frozen=True)
class Cpu:
    """A process of one thread, with forward and backward of micro-batches of about 1,024 tokens.

    Attributes:
        gflops: GFLOP/s of the network's matmuls and attention.
        layer_ms: of a layer beside these.
        connection_ms: of a connection beside these, by kind; of one that is not there, the most of all.
        step_ms: of a step, once: batch, update, log.
        start_s: of a process, before its first step and after its last.
    """

    name: str
    gflops: float
    layer_ms: float
    step_ms: float
    start_s: float
    connection_ms: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, config: Config) -> float:
        """Of a step of one process, whose ranks and micro-batches are computed one after another."""
        training = config.training
        tokens = training.global_batch * config.data.sequence_length
        flops = 3.0 * tokens * counts.forward_flops(config, counts.whole_model(config)).total()
        connection = self.connection_ms.get(
            config.connection.kind, max(self.connection_ms.values(), default=0.0)
        )
        calls = (
            config.model.layers
            * (self.layer_ms + 2 * connection)
            * training.global_batch
            / training.micro_batch
        )
        return (self.step_ms + calls) / 1e3 + flops / (self.gflops * 1e9)


def read_cpu(path: Path) -> Cpu:
    """A file with Cpu's figures.

    Raises:
        ConfigError: it cannot be read, or lacks one.
    """
    hints = {**typing.get_type_hints(Cpu), "name": str}
    values: dict[str, typing.Any] = {"name": path.stem}
    for key, entry in Entry("", compose_file(path), f"{path}:1").entries().items():
        refuse_unknown(entry, key, hints)
        if key == "connection_ms":
            values[key] = {kind: _figure(own) for kind, own in entry.entries().items()}
        else:
            values[key] = entry.value(str) if key == "name" else _figure(entry)
    if missing := [own.name for own in fields(Cpu) if own.name not in values and own.name != "connection_ms"]:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}; python -m tools.cpu_rates finds them")
    return Cpu(**values)


def _figure(entry: Entry) -> float:
    value: float = entry.value(float)
    if not 0 <= value <= 1e9 or (value == 0 and entry.key == "gflops"):
        raise entry.error("is out of range; it must be from 0 to 1e9, and gflops above 0")
    return value
