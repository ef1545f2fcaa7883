"""Batches: every token a label once an epoch, an order of seed and step alone, exact nats a byte."""

import math

import numpy as np
import pytest
import torch

from hcmegatron.config.schema import Data, Training
from hcmegatron.data import dataset
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.data.order import permutation
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer import ByteTokenizer

S = 16


def sections(global_batch=8, micro_batch=2, seed=1, eval_batches=1):
    training = Training(global_batch=global_batch, micro_batch=micro_batch, eval_batches=eval_batches)
    return Data(sequence_length=S, seed=seed), training


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(30):
        (folder / f"{index}.txt").write_text(f"file {index} " * (3 + index))
    return Text(find_corpus(Data(paths=[str(folder)], sequence_length=S, holdout=0.2)), ByteTokenizer())


def step_of(text, made, step, data_parallel=1):
    """A step's sequences over all ranks and micro-batches, as sorted tuples."""
    rows = []
    for rank in range(data_parallel):
        batches = Batches(text, *made, rank, data_parallel)
        for micro_batch in range(batches.micro_batches):
            rows += [tuple(row.tolist()) for row in batches(step, micro_batch)["tokens"]]
    return sorted(rows)


def test_tokenizer_round_trip():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("naïve\n")
    assert ids.tolist() == list("naïve\n".encode()) and tokenizer.decode(ids) == "naïve\n"
    assert tokenizer.decode(np.array([72, 256, 105, 255])) == "Hi\ufffd"


def test_tokens_are_the_files_bytes_with_ends(text):
    documents = bytes(np.where(text.training[0] == 256, 0, text.training[0]).astype(np.uint8)).split(b"\0")
    assert documents[-1] == b"" and all(document.startswith(b"file ") for document in documents[:-1])
    assert len(documents) - 1 + np.count_nonzero(text.held_out[0].tokens == 256) == 30


@pytest.mark.parametrize("together", [1, 3, 4, 100])
def test_reading_micro_batches_together_changes_none_and_reads_a_step_once(text, together, monkeypatch):
    made = sections(global_batch=14)  # seven micro-batches of two
    monkeypatch.setattr(dataset, "_TOGETHER", 2 * S)
    alone = Batches(text, *made)
    monkeypatch.setattr(dataset, "_TOGETHER", together * 2 * S)
    batches = Batches(text, *made)
    read = []
    window = batches.window
    monkeypatch.setattr(batches, "window", lambda sample: read.append(sample) or window(sample))

    def equal(seen, number):
        expected, found = alone(seen, number), batches(seen, number)
        assert expected.keys() == found.keys() and expected.pop("first_sample") == found.pop("first_sample")
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())

    for number in range(7):
        equal(28, number)
        equal(28, number)  # of the rank's other chunk
    assert read == [*range(28, 42)]
    alone.left_out = batches.left_out = ((30, 34),)
    for number in (6, 0, 3):
        equal(28, number)


def test_an_epoch_predicts_every_token_once(text):
    batches = Batches(text, *sections(global_batch=1, micro_batch=1))
    labels = {}
    for step in range(batches.windows):
        batch = batches(step, 0)
        window = batches.window(step)
        assert torch.equal(batch["tokens"][0, 1:], batch["labels"][0, :-1])
        labels[window] = batch["labels"][0].numpy()
    assert len(labels) == batches.windows
    joined = np.concatenate([labels[window] for window in range(batches.windows)])
    assert np.array_equal(joined, text.training[0][1 : 1 + len(joined)])
    assert len(text.training[0]) - 1 - len(joined) < S


def test_order_is_the_same_for_every_layout_and_resumes_from_the_step(text):
    for step in (0, 3, 40, 1000):  # several epochs in
        reference = step_of(text, sections(), step)
        assert len(reference) == 8
        for micro_batch, data_parallel in ((1, 1), (8, 1), (1, 8), (2, 4), (4, 2)):
            assert step_of(text, sections(micro_batch=micro_batch), step, data_parallel) == reference
    assert step_of(text, sections(seed=2), 0) != step_of(text, sections(seed=1), 0)
    batches = Batches(text, *sections())
    seen = [batches(step, 1)["tokens"] for step in (5, 900, 5)]
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_steps_go_through_epochs_without_repeats(text):
    made = sections()
    batches = Batches(text, *made)
    windows = [batches.window(sample) for sample in range(2 * batches.windows)]
    first, second = windows[: batches.windows], windows[batches.windows :]
    assert sorted(first) == sorted(second) == list(range(batches.windows)) and first != second


def test_the_permutation_is_the_same_on_every_machine():
    assert permutation(8, 1234, 0).tolist() == [5, 6, 3, 7, 4, 1, 2, 0]


def test_batch_fields(text):
    batch = Batches(text, *sections())(0, 0)
    assert batch.pop("first_sample") == 0
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "tokens": (torch.int64, (2, S)),
        "labels": (torch.int64, (2, S)),
        "loss_mask": (torch.float32, (2, S)),
        "position_ids": (torch.int64, (2, S)),
        "document_ids": (torch.int64, (2, S)),
    }
    assert all(value.is_contiguous() for value in batch.values())
    assert batch["position_ids"][1].tolist() == list(range(S)) and bool((batch["loss_mask"] == 1).all())


def test_the_first_sample_is_counted_through_the_whole_run_over_all_ranks(text):
    made = sections(global_batch=8, micro_batch=2)
    firsts = [
        [batches(seen, i)["first_sample"] for i in range(batches.micro_batches)]
        for batches in (Batches(text, *made, rank, 2) for rank in range(2))
        for seen in (0, 40)
    ]
    assert firsts == [[0, 4], [40, 44], [2, 6], [42, 46]]


def test_document_ids_change_after_the_end_token(text):
    batches = Batches(text, *sections(global_batch=1, micro_batch=1))
    seen = 0
    for step in range(batches.windows):
        batch = batches(step, 0)
        tokens, ids = batch["tokens"][0].tolist(), batch["document_ids"][0].tolist()
        document = 0
        for token, document_id in zip(tokens, ids, strict=True):
            assert document_id == document
            document += token == 256
        seen += document
    assert seen > 10


@pytest.mark.parametrize(
    ("eval_batches", "micro_batch", "data_parallel"), [(1, 2, 1), (1, 4, 2), (999, 3, 1), (999, 1, 5)]
)
def test_validation_is_exact_over_any_layout(text, eval_batches, micro_batch, data_parallel):
    """Loss 1 at every label and 0.5 more at ends: any double count or padding shows in the total."""
    made = sections(micro_batch=micro_batch, eval_batches=eval_batches)
    total, labels, counts = 0.0, 0, []
    for rank in range(data_parallel):
        validation = Validation(text, *made, rank, data_parallel)
        counts.append(validation.micro_batches)
        for index in range(validation.micro_batches):
            batch = validation(index)
            assert batch["tokens"].shape == (micro_batch, S)
            loss = 1 + 0.5 * (batch["labels"] == 256)
            total += float((loss * batch["loss_mask"]).sum())
            labels += int(batch["loss_mask"].sum())
    windows = min(8 * eval_batches, (len(text.held_out[0].tokens) - 1) // S)
    assert labels == windows * S and len(set(counts)) == 1
    ends = labels - validation.bytes
    assert total == labels + 0.5 * ends
    assert validation.nats_per_byte(total) == pytest.approx((labels + 0.5 * ends) / (labels - ends))
    if eval_batches == 999:
        assert ends == np.count_nonzero(text.held_out[0].tokens[1 : 1 + labels] == 256) > 0


def test_baselines(text):
    validation = Validation(text, *sections(eval_batches=999))
    labels = text.held_out[0].tokens[1 : 1 + len(validation.windows) * S].astype(int)
    counts = np.bincount(text.training[0], minlength=257) + 1
    expected = sum(-math.log(counts[label] / counts.sum()) for label in labels) / np.count_nonzero(
        labels < 256
    )
    assert validation.unigram == pytest.approx(expected, rel=1e-12)
    assert validation.uniform == pytest.approx(math.log(257) * len(labels) / np.count_nonzero(labels < 256))


def test_baselines_of_the_standard_library():
    validation = Validation(Text(find_corpus(Data()), ByteTokenizer()), Data(), Training())
    assert 5.54 < validation.uniform < 5.56
    assert 3.0 < validation.unigram < 3.5  # about 3.25
