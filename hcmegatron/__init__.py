"""Hyper-Connections: for any torch module, with pipeline schedules, and a trainer on Megatron-Core.

    import hcmegatron as hc

    around = hc.connection("mhc", hidden_size=512, streams=4)
    layer = hc.Connected(sub_layer, around)            # any module that takes x [s,b,C] to y [s,b,C]
    h = hc.contract(layer(hc.expand(h, streams=4)))
    hc.train("quickstart", training={"steps": 100})

Importing this loads neither torch nor Megatron-Core: a name loads what it needs when it is first used. Connections,
kernels and schedules need torch alone; `train` and the trainer's rooms need `pip install 'hcmegatron[train]'`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hcmegatron import aliases

__version__ = "0.1.0"

if TYPE_CHECKING:
    import launch as launch
    import schedules as schedules
    from hcmegatron.config import Config as Config
    from hcmegatron.config import ConfigError as ConfigError
    from hcmegatron.config import load_config as load_config
    from hcmegatron.connections import kinds as _kinds
    from hcmegatron.connections.build import connection as connection
    from hcmegatron.connections.build import contraction as contraction
    from hcmegatron.connections.build import parameter_of as parameter_of
    from hcmegatron.connections.connected import Connected as Connected
    from hcmegatron.connections.connection import Connection as Connection
    from hcmegatron.connections.expand_contract import contract as contract
    from hcmegatron.connections.expand_contract import expand as expand
    from hcmegatron.connections.sinkhorn import sinkhorn as sinkhorn
    from hcmegatron.kernels.select import select_kernels as select_kernels
    from hcmegatron.train_from_python import train as train

    register_connection = _kinds.register

# What can be imported from here -> where it is.
_PUBLIC = {
    "Config": "hcmegatron.config:Config",
    "ConfigError": "hcmegatron.config:ConfigError",
    "Connected": "hcmegatron.connections.connected:Connected",
    "Connection": "hcmegatron.connections.connection:Connection",
    "connection": "hcmegatron.connections.build:connection",
    "contract": "hcmegatron.connections.expand_contract:contract",
    "contraction": "hcmegatron.connections.build:contraction",
    "expand": "hcmegatron.connections.expand_contract:expand",
    "load_config": "hcmegatron.config:load_config",
    "parameter_of": "hcmegatron.connections.build:parameter_of",
    "register_connection": "hcmegatron.connections.kinds:register",
    "select_kernels": "hcmegatron.kernels.select:select_kernels",
    "sinkhorn": "hcmegatron.connections.sinkhorn:sinkhorn",
    "train": "hcmegatron.train_from_python:train",
}
__all__ = ["__version__", *_PUBLIC]

aliases.install()


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for (PEP 562)."""
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
    elif f"{__name__}.{name}" in aliases.ALIASES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name.rpartition(".")[2] for name in aliases.ALIASES)])
