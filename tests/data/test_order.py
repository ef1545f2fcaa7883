"""The order of samples: of seed and number alone, through epochs, blends, layouts and batch sizes."""

from collections import Counter

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches
from hcmegatron.data.order import DRAWN, Order, permutation, scattered, whole_weights
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer import ByteTokenizer
from tests.data.prepared import data_set

S = 16


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three data sets of about 40, 25 and 9 windows."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        name: data_set(folder / name, [f"{name}{index:03}" * 4 for index in range(count)])
        for name, count in (("a", 38), ("b", 24), ("c", 9))
    }


def data(sets, *paths, **others):
    named = [path if " " not in path else f"{path.split()[0]} {sets[path.split()[1]]}" for path in paths]
    return Data(
        paths=[str(sets.get(path, path)) for path in named], sequence_length=S, seed=7, holdout=0.0, **others
    )


def of_steps(text, settings, batch, micro_batch, data_parallel, seen, steps):
    """The sequences of some steps, in the order of their samples, as all ranks read them together."""
    training = Training(global_batch=batch, micro_batch=micro_batch)
    found = {}
    for rank in range(data_parallel):
        batches = Batches(text, settings, training, rank, data_parallel)
        for step in range(steps):
            for index in range(batches.micro_batches):
                read = batches(seen + step * batch, index)
                for row, tokens in enumerate(read["tokens"].tolist()):
                    assert found.setdefault(read["first_sample"] + row, tuple(tokens)) == tuple(tokens)
    assert [*found] == [*range(seen, seen + steps * batch)] or sorted(found) == [
        *range(seen, seen + steps * batch)
    ]
    return [found[sample] for sample in sorted(found)]


PATHS = {"one": ["a"], "end to end": ["a", "b", "c"], "a blend": ["0.5 a", "0.3 b", "0.2 c"]}


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
def test_the_order_is_that_of_the_samples_whatever_the_layout(sets, paths):
    """From every sample that a step may begin with, through several epochs of every source."""
    settings = data(sets, *paths)
    text = Text(find_corpus(settings), ByteTokenizer())
    whole = of_steps(text, settings, 1, 1, 1, 0, 240)
    for batch, micro_batch, data_parallel in ((4, 1, 4), (4, 2, 2), (8, 4, 1), (8, 2, 4), (12, 1, 2)):
        assert of_steps(text, settings, batch, micro_batch, data_parallel, 0, 240 // batch) == whole
    for seen in range(0, 232, 4):  # goes on with another batch size, layout and micro-batch
        batch, data_parallel = (8, 2) if seen % 8 else (4, 4)
        assert of_steps(text, settings, batch, 1, data_parallel, seen, 1) == whole[seen : seen + batch]


def test_an_epoch_has_every_window_once(sets):
    settings = data(sets, "a", "b", "c")
    text = Text(find_corpus(settings), ByteTokenizer())
    batches = Batches(text, settings, Training(global_batch=1, micro_batch=1))
    assert batches.windows == sum((len(tokens) - 1) // S for tokens in text.training) == len(text) // S - 1
    for epoch in range(3):
        seen = [batches.window(epoch * batches.windows + place) for place in range(batches.windows)]
        assert sorted(seen) == [*range(batches.windows)]


def test_each_source_of_a_blend_has_epochs_of_its_own():
    order = Order([50, 7, 5], 3, [5, 3, 2])
    windows = {source: [] for source in range(3)}
    for sample in range(5000):
        source, window = order(sample)
        windows[source].append(window)
    for source, size in enumerate([50, 7, 5]):
        epochs = [windows[source][at : at + size] for at in range(0, len(windows[source]) - size, size)]
        assert len(epochs) > 20 and all(sorted(epoch) == [*range(size)] for epoch in epochs)
        assert epochs[0] != epochs[1]
    assert [len(windows[source]) for source in range(3)] == [2500, 1500, 1000]


@pytest.mark.parametrize(
    "weights",
    [
        [1, 1],
        [7, 3],
        [5, 3, 2],
        [90, 9, 1],
        [1] * 7,
        [50, 20, 10, 10, 5, 3, 1, 1],
        [999, 1],
        [11, 8, 1],
        [*range(1, 25)],
    ],
)
def test_proportions_are_exact_to_a_sample_at_every_prefix(weights):
    order = Order([10] * len(weights), 1, weights)
    taken, total = Counter(), sum(weights)
    for sample in range(3 * total):
        source, before = order.source(sample)
        assert before == taken[source]
        taken[source] += 1
        for index, weight in enumerate(weights):
            assert abs(taken[index] - weight * (sample + 1) / total) < 1
    assert [taken[index] for index in range(len(weights))] == [3 * weight for weight in weights]


def test_weights_as_whole_numbers():
    assert whole_weights(["0.7", "0.3"]) == [7, 3] and whole_weights(["2", "2"]) == [1, 1]
    assert whole_weights([".5", "1.25", "0.25"]) == [2, 5, 1]
    with pytest.raises(ConfigError, match=r"a weight of 0; weights are numbers above 0"):
        whole_weights(["1", "0"])
    with pytest.raises(ConfigError, match=r"repeat only after 10,000,000 samples"):
        whole_weights(["0.1234567", "0.8765433"])


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 4096])
def test_what_is_not_written_out_is_a_permutation_too(size):
    found = [scattered(place, size, 1234, 0, 0) for place in range(size)]
    assert sorted(found) == [*range(size)]
    if size > 100:
        assert found != [scattered(place, size, 1234, 1, 0) for place in range(size)]
        assert abs(np.corrcoef(found, range(size))[0, 1]) < 0.1


def test_orders_are_the_same_on_every_machine():
    assert permutation(8, 1234, 0).tolist() == [5, 6, 3, 7, 4, 1, 2, 0]
    assert [Order([DRAWN + 1], 1234)(place)[1] for place in range(3)] == [802997, 341157, 460004]
