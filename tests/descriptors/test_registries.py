"""Whatever is described is in its registry."""

import importlib
import pkgutil

import pytest

from hcmegatron.connections import kinds
from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Head
from hcmegatron.connections.kinds.heads import HEADS
from schedules import generators
from schedules.descriptor import ScheduleDescriptor


@pytest.mark.parametrize(
    ("package", "sort", "registry"),
    [
        (kinds, ConnectionDescriptor, kinds.KINDS),
        (kinds, Head, HEADS),
        (generators, ScheduleDescriptor, generators.SCHEDULES),
    ],
    ids=["kinds", "heads", "schedules"],
)
def test_every_descriptor_of_a_folder_is_in_its_registry(package, sort, registry):
    names = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    described = [value for name in names for value in vars(importlib.import_module(name)).values()]
    left_out = {value.name for value in described if isinstance(value, sort)} - registry.keys()
    assert left_out == set(), f"add them to {package.__name__}"
    assert all(name == value.name for name, value in registry.items())
