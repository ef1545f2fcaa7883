"""data.test: evaluated whole, once, at the end, as validation is."""

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Validation
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from tests.data import data_workers
from tests.data.prepared import data_set, written
from tests.ranks import run_ranks
from tests.small_configs import tiny

RUN = {"preload": ("tests.data.data_workers",), "process_group": False, "timeout": 120, "grace": 10.0}
TEXTS = [f"document {index}: {'ab' * (index % 9)} naïve {index * index}\n" for index in range(90)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Data sets: to train on, two with the same documents, and one with others."""
    folder = tmp_path_factory.mktemp("sets")
    texts = {"train": TEXTS, "held": TEXTS[:30], "test": TEXTS[:30], "other": [t.upper() for t in TEXTS[:9]]}
    return {name: str(data_set(folder / name, own)) for name, own in texts.items()}


@pytest.mark.ranks
def test_test_sets_are_judged_once_and_as_validation_is(sets, tmp_path):
    config = tiny(
        tmp_path,
        tmp_path / "run",
        data={"paths": [sets["train"]], "validation": [sets["held"]], "test": [sets["test"], sets["other"]]},
        training={"steps": 2, "eval_every": 1, "eval_batches": 99},
        checkpoint={"save_every": 0},
    )
    lines = run_ranks(2, data_workers.metrics, config, **RUN)[0]
    assert [line["kind"] for line in lines] == ["train", "validation", "train", "validation", "test"]
    held, tested = lines[-2:]
    assert tested["step"] == 2 and tested[f"loss/{sets['test']}"] == held["loss"]  # to the last bit
    assert tested[f"loss/{sets['other']}"] > held["loss"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("step 2: test loss ") == 1 and f"\n  {sets['other']}: " in log


@pytest.mark.ranks
def test_a_finished_run_is_tested_when_it_is_resumed_and_once(sets, tmp_path):
    """Test sets may be added to it; one that was killed during its tests has its checkpoint and no result, too."""
    data = {"paths": [sets["train"]], "holdout": 0.0}
    for number, own in enumerate([{}, {"test": [sets["test"]]}, {"test": [sets["test"]]}]):
        config = tiny(
            tmp_path,
            tmp_path / "run",
            data={**data, **own},
            training={"steps": 1},
            checkpoint={"save_every": 1, "resume": "auto"},
        )
        lines = run_ranks(2, data_workers.metrics, config, **RUN)[0]
        assert [line["kind"] for line in lines] == ["train", "test"][: number + 1]
        assert lines[-1]["step"] == 1


@pytest.mark.ranks
def test_a_test_set_needs_no_validation(sets, tmp_path):
    config = tiny(
        tmp_path,
        tmp_path / "run",
        data={"paths": [sets["train"]], "holdout": 0.0, "test": [sets["test"]]},
        training={"steps": 1},
        checkpoint={"save_every": 0},
    )
    lines = run_ranks(2, data_workers.metrics, config, **RUN)[0]
    assert [line["kind"] for line in lines] == ["train", "test"] and 4 < lines[1]["loss"] < 7


def test_all_windows_are_judged(sets):
    data = Data(paths=[sets["train"]], test=[sets["test"]], sequence_length=32)
    text = Text(find_corpus(data), build_tokenizer("byte"))
    tested = Validation(text, data, Training(eval_batches=1, global_batch=1, micro_batch=4), test=True)
    tokens = text.test[0].tokens
    assert tested.windows == list(range((len(tokens) - 1) // 32)) and len(tested.windows) == 30
    judged = tokens[1 : 1 + 32 * len(tested.windows)]
    assert tested.bytes == np.count_nonzero(judged != 256) == tested.nats_per_byte(1.0) ** -1
    assert len(text.held_out) == 1 and len(text) < 0.99 * find_corpus(data).training[0].manifest.tokens


def test_the_order_of_training_does_not_depend_on_test_sets(sets):
    without, with_test = (find_corpus(Data(paths=[sets["train"]], test=own)) for own in ([], [sets["test"]]))
    assert without.fingerprint == with_test.fingerprint and with_test.test[0].name == sets["test"]


MISTAKES = [
    (
        {"paths": ["train"], "test": ["train"]},
        "data.test = {train} is trained on too (data.paths); name another",
    ),
    (
        {"paths": ["train"], "validation": ["held"], "test": ["held"]},
        "data.test = {held} is evaluated during training too (data.validation); name another data set",
    ),
    ({"paths": ["train"], "test": ["test", "test"]}, "data.test names {test} twice; name it once"),
    ({"paths": ["train"], "test": ["/"]}, "/: no prepared data set (manifest.json is not there)"),
]


@pytest.mark.parametrize(("named", "words"), MISTAKES)
def test_mistakes_are_one_line(named, words, sets):
    data = Data(**{key: [sets.get(name, name) for name in names] for key, names in named.items()})
    with pytest.raises(ConfigError) as caught:
        find_corpus(data)
    assert str(caught.value).startswith(words.format(**sets)) and str(caught.value).isprintable()


def test_a_test_set_beside_text_or_too_short_is_refused(sets, tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.test = \['.*'\], but data.paths names text; prepare it"):
        find_corpus(Data(paths=[str(written(tmp_path / "a.txt"))], test=[sets["test"]]))
    data = Data(
        paths=[sets["train"]], test=[str(data_set(tmp_path / "short", ["a" * 9]))], sequence_length=32
    )
    with pytest.raises(
        ConfigError, match=r"^data\.test: .*short has 10 tokens, fewer than data.sequence_length"
    ):
        Validation(Text(find_corpus(data), build_tokenizer("byte")), data, Training(), test=True)
