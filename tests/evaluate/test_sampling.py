"""Which token comes next, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from hcmegatron.config import Config
from hcmegatron.evaluate.generation import Continuation
from hcmegatron.evaluate.sampling import GREEDY, Sampling, choose, draw, nucleus, softmax, uniform
from hcmegatron.training.generate_cli import Asked, _shown


def test_a_text_as_json_is_ascii():
    """Whatever the locale of the terminal is, it is JSON."""
    asked = Asked(Config(), Path(), 4, [[110]], ["naïve"], 1, {}, as_json=True)
    shown = _shown(asked, 0, Continuation([110], [8364]), " €\ud800")
    assert shown.isascii() and json.loads(shown)["prompt"] == "naïve" and "\\u20ac" in shown


def test_the_likeliest_is_the_first_of_equals():
    assert choose(np.float32([1, 3, 3, -2]), GREEDY, 0, 0) == 1


def test_a_softmax_at_any_temperature():
    logits = np.log(np.float32([1, 2, 5]))
    assert softmax(logits, 1.0) == pytest.approx([0.125, 0.25, 0.625])
    assert softmax(logits, 0.5) == pytest.approx([1 / 30, 4 / 30, 25 / 30])
    assert softmax(logits, 1e-30).tolist() == [0, 0, 1]
    assert softmax(np.float32([3e38, 0]), 1e5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1.0, [1, 1, 1, 1]),
        (0.875, [1, 1, 0, 1]),
        (0.76, [1, 1, 0, 1]),
        (0.75, [0, 1, 0, 1]),
        (0.5, [0, 1, 0, 0]),
    ],
)
def test_a_nucleus_is_the_fewest_of_the_likeliest(top_p, kept):
    probabilities = np.array([0.125, 0.5, 0.125, 0.25])
    assert nucleus(probabilities, top_p).tolist() == (probabilities * kept).tolist()


def test_a_nucleus_has_the_likeliest_token_always():
    assert nucleus(np.array([0.25, 0.75]), 1e-9).tolist() == [0, 0.75]


def test_what_is_drawn_lies_in_the_order_of_ids():
    weights = np.array([0, 0.25, 0, 0.5, 0.25, 0])
    assert [draw(weights, at) for at in (0, 0.24, 0.25, 0.74, 0.75, 1 - 2**-53)] == [1, 1, 3, 3, 4, 4]


def test_tokens_come_as_often_as_they_are_likely_and_differ_by_text_and_place():
    logits, drawn = np.log(np.array([0.1, 0.2, 0.7])), Sampling(1.0, 1.0, 5)
    found = [choose(logits, drawn, text, position) for text in range(20) for position in range(100)]
    assert np.bincount(found) / len(found) == pytest.approx([0.1, 0.2, 0.7], abs=0.03)
    assert [choose(logits, drawn, 3, n) for n in range(100)] == found[300:400] != found[400:500]
    assert {choose(logits, Sampling(1.0, 0.6, 5), 0, n) for n in range(100)} == {2}


def test_a_draw_is_these_bits():
    assert uniform(7, 2, 11) == 0.6890498689928226
