"""The comparison of dtypes sees the matrices that a model's own layers read with."""

import torch

from hcmegatron.model.nodes import Keeping
from tests.recompute.stack import Stack
from tools.compare_dtypes import watch_row_sums


def test_row_sums_are_watched_in_every_read():
    model = Stack("mhc", 4, sublayers=3, C=16)
    found = watch_row_sums(model)
    plain = model(model.input(5), Keeping())
    assert len(found) == 3 and max(found) <= 1e-6
    for connection in model.connections:
        del connection.read
    assert torch.equal(plain, model(model.input(5), Keeping()))
