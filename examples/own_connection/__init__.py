"""A connection of one's own, outside the package: LayerScale (2103.17239), H' = H + gamma * T(H), gamma a weight for
every channel.

Importing this registers it. In a program of one's own that is all; for the command and its ranks, name the module:

    export PYTHONPATH=examples HCMEGATRON_PLUGINS=own_connection
    hcmegatron config quickstart --connection.kind=layerscale --connection.gamma_init=0.1
    hcmegatron train quickstart --connection.kind=layerscale

An installed package needs no variable, but an entry point in its pyproject.toml:

    [project.entry-points."hcmegatron.plugins"]
    layerscale = "own_connection"

This file imports no torch, so that configuration and plans stay as quick as they are; the module does.
"""

from dataclasses import dataclass

import hcmegatron
from hcmegatron.connections.kinds.descriptor import POSITIVE, ConnectionDescriptor, Parameter, setting
from hcmegatron.connections.kinds.shared_settings import Trained


@dataclass
class LayerScaleSettings(Trained):
    """The fields of the `connection` section that it reads."""

    gamma_init: float = setting(
        0.1, POSITIVE, tries=(0.1, 1.0), change="beginning"
    )  # of every channel's weight


LAYERSCALE = hcmegatron.register_connection(
    ConnectionDescriptor(
        name="layerscale",
        title="LayerScale (2103.17239)",
        settings=LayerScaleSettings,
        module="own_connection.layerscale:LayerScale",
        parameters=lambda conn, C: {"gamma": Parameter((C,), "static")},
        flops=lambda conn, C: 2 * C,
        saved_bytes=lambda conn, C, itemsize: 0 if itemsize >= 4 else 4 * C,  # y in fp32
        carry="identity",
        kernels=False,
        passes=0,
        starts="near",
    )
)
