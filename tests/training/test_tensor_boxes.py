"""Ranges as boxes: every element of the range once, in order, and few boxes."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hcmegatron.training.tensor_boxes import boxes_of_range


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_boxes_hold_the_range_in_order(shape, data):
    elements = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, elements.size))
    stop = data.draw(st.integers(start, elements.size))
    found = []
    parts = list(boxes_of_range(tuple(shape), start, stop))
    for offset, size in parts:
        box = elements[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
        assert box.shape == size
        found += box.flatten().tolist()
    assert found == list(range(start, stop))
    assert len(parts) <= max(1, 2 * len(shape) - 1)
