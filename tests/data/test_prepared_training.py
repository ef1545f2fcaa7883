"""Training from prepared data sets: what text in memory gives, in blends, judged by each, read where it is used."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.schema import Data, Training
from hcmegatron.data.blend import PreparedSet, find_prepared
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches, Validation
from hcmegatron.data.mapped import open_set
from hcmegatron.data.prepare import Preparation
from hcmegatron.data.prepared import Manifest, read_manifest
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from tests.data import data_workers
from tests.data.prepared import data_set
from tests.data.small_tokenizers import byte_level, sentence_piece
from tests.ranks import run_ranks
from tests.small_configs import tiny

RUN = {"preload": ("tests.data.data_workers",), "process_group": False, "timeout": 120, "grace": 10.0}
TEXTS = [f"document {index}: {'ab' * (index % 9)} naïve {index * index}\n" for index in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of text, a tokenizer, and data sets made with it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    for index, text in enumerate(TEXTS):
        (folder / "text" / f"{index:03}.txt").write_text(text)
    tokenizer = byte_level(folder, 300, TEXTS)
    for name, made_with in (("bytes", "byte"), ("bpe", str(tokenizer))):
        Preparation([str(folder / "text")], made_with, folder / name, piece_bytes=2000).run(2)
    return folder


@pytest.mark.parametrize("name, tokenizer", [("bytes", "byte"), ("bpe", "bpe300.json")])
def test_samples_are_those_of_the_text_in_memory(folder, name, tokenizer):
    if tokenizer != "byte":
        tokenizer = str(folder / tokenizer)
    read = []
    for path in (folder / "text", folder / name):
        data = Data(paths=[str(path)], tokenizer=tokenizer, sequence_length=32, holdout=0.0)
        text = Text(find_corpus(data), build_tokenizer(tokenizer))
        batches = Batches(text, data, Training(global_batch=4, micro_batch=4))
        assert batches.rows.mapped == (path.name != "text")
        read.append([batches(seen, 0) for seen in range(0, 3 * batches.windows, 4)])
    for in_memory, mapped in zip(*read, strict=True):
        assert in_memory.keys() == mapped.keys()
        assert all(np.array_equal(in_memory[key], mapped[key]) for key in mapped)


@pytest.mark.ranks
def test_losses_are_those_of_the_text_in_memory(folder, tmp_path):
    said = []
    for name in ("text", "bpe"):
        config = tiny(folder / name, tmp_path / name, training={"steps": 3}, checkpoint={"save_every": 0})
        config.data.tokenizer, config.data.holdout = str(folder / "bpe300.json"), 0.0
        lines = run_ranks(2, data_workers.metrics, config, **RUN)[0]
        said.append([(line["loss"], line["grad_norm"]) for line in lines])
    assert said[0] == said[1] and len(said[0]) == 3


@pytest.mark.ranks
def test_each_source_is_validated_and_all_together(folder, tmp_path):
    other = data_set(tmp_path / "other", [text.upper() for text in TEXTS[:90]])
    config = tiny(folder / "bytes", tmp_path / "run", training={"steps": 1}, checkpoint={"save_every": 0})
    config.data.paths = [f"0.75 {folder / 'bytes'}", f"0.25 {other}"]
    (line,) = (
        one for one in run_ranks(2, data_workers.metrics, config, **RUN)[0] if one["kind"] == "validation"
    )
    low, high = sorted(line[f"loss/{path}"] for path in (folder / "bytes", other))
    assert 4 < low < line["loss"] < high < 7
    assert line["bits_per_byte"] == pytest.approx(line["loss"] / np.log(2))


@pytest.mark.ranks
def test_only_first_and_last_stage_read(folder, tmp_path):
    config = tiny(folder / "bytes", tmp_path / "run", training={"steps": 2}, checkpoint={"save_every": 0})
    config.model.layers = config.parallel.pipeline = 3
    config.parallel.schedule = "1f1b"
    first, middle, last = run_ranks(3, data_workers.reads, config, **RUN)
    assert middle == (0, 0) and first == last and first[0] >= 3 * 2 and first[1] >= 2


def test_the_last_documents_are_held_out(folder):
    for share, name in ((0.1, "bytes"), (0.02, "bpe"), (1e-9, "bytes")):
        manifest = read_manifest(folder / name)
        train, end = open_set(PreparedSet(name, folder / name, manifest), share)
        assert len(train) + len(end) == manifest.tokens
        assert train[len(train) - 1 : len(train)][0] == manifest.end_of_document
        assert abs(len(end) - share * manifest.tokens) < manifest.longest + 1 and len(end) > 0
    one = data_set(folder / "one", ["a single document " * 20])
    train, end = open_set(PreparedSet("one", one, read_manifest(one)), 0.25)
    assert len(end) == round(0.25 * (len(train) + len(end)))


def test_a_last_document_that_is_most_of_a_set_is_cut(tmp_path):
    """And the run says what the share is of tokens, not what was asked for."""
    long = str(data_set(tmp_path / "long", ["a" * 199, "b" * 799]))  # 1,000 tokens with the ends
    fits = str(data_set(tmp_path / "fits", ["a" * 599, "b" * 399]))
    text = Text(find_corpus(Data(paths=[long, fits], holdout=0.02)), build_tokenizer("byte"))
    assert [
        (len(train), len(held.tokens)) for train, held in zip(text.training, text.held_out, strict=True)
    ] == [
        (980, 20),
        (600, 400),
    ]
    assert text.split == f"held out: the last 0.02 of {long}, 0.4 of {fits}"
    own = find_corpus(Data(paths=[long], validation=[fits]))
    assert Text(own, build_tokenizer("byte")).split == f"held out: {fits}"


def test_a_set_that_is_too_short_is_named(tmp_path):
    long, short = (str(data_set(tmp_path / name, ["a" * 99] * n)) for name, n in (("long", 9), ("short", 1)))

    def refused(length: int, **named) -> str:
        data = Data(**named, sequence_length=length)
        text = Text(find_corpus(data), build_tokenizer("byte"))
        with pytest.raises(ConfigError) as caught:
            Batches(text, data, Training())
            for source in range(len(text.held_out)):
                Validation(text, data, Training(), source=source)
        return str(caught.value)

    few = "fewer than data.sequence_length + 1 ="
    said = refused(200, paths=[long, short], holdout=0.0)
    assert (
        said
        == f"data.paths: the training text of {short} has 100 tokens, {few} 201; give more text or a shorter sequence"
    )
    said = refused(200, paths=[long], holdout=0.1)
    assert said.startswith(
        f"data.paths: the held-out text of {long} has 100 tokens, {few} 201; give more text, a larger"
    )
    said = refused(200, paths=[long], validation=[short])
    assert said == f"data.validation: {short} has 100 tokens, {few} 201; give more text or a shorter sequence"


def test_validation_sets_of_their_own(folder, tmp_path):
    other = data_set(tmp_path / "held", ["held out " * 20] * 30)
    data = Data(paths=[str(folder / "bytes")], validation=[str(other)], sequence_length=32)
    corpus = find_corpus(data)
    text = Text(corpus, build_tokenizer("byte"))
    assert len(text) == read_manifest(folder / "bytes").tokens
    validation = Validation(text, data, Training(micro_batch=2, global_batch=4))
    assert validation.name == str(other)
    assert bytes(validation(0)["tokens"][0, :9].byte().tolist()) == b"held out "
    another = replace(corpus, validation=(corpus.training[0],))
    assert another.fingerprint == corpus.fingerprint  # no number of the training depends on it
    assert replace(corpus, validation=()).fingerprint != corpus.fingerprint


def test_a_tokenizer_that_changes_text_is_weighed_by_the_true_bytes(tmp_path):
    """SentencePiece with what it does by default: runs of white space become one space."""
    texts = ["the   end    of the line   " * 3] * 40
    tokenizer = sentence_piece(tmp_path, remove_extra_whitespaces=True)
    path = data_set(tmp_path / "set", texts, str(tokenizer))
    manifest = read_manifest(path)
    assert manifest.bytes == sum(map(len, texts)) and manifest.byte_ratio > 1.2
    data = Data(paths=[str(path)], tokenizer=str(tokenizer), sequence_length=16, holdout=0.5)
    validation = Validation(Text(find_corpus(data), build_tokenizer(str(tokenizer))), data, Training())
    labels = validation.counts.sum()
    assert validation.bytes == pytest.approx(labels * manifest.bytes / manifest.tokens, rel=0.05)


def test_bits_a_byte_are_of_the_bytes_of_the_labels(folder):
    """Whatever the tokens: every one of byte-level BPE stands for as many bytes as it has."""
    for name, tokenizer in (("bytes", "byte"), ("bpe", str(folder / "bpe300.json"))):
        data = Data(paths=[str(folder / name)], tokenizer=tokenizer, sequence_length=32, holdout=0.3)
        made = build_tokenizer(tokenizer)
        text = Text(find_corpus(data), made)
        validation = Validation(text, data, Training(eval_batches=99, micro_batch=1))
        held = text.held_out[0].tokens
        labels = held[1 : 1 + 32 * len(validation.windows)]
        left = len(made.decode(held[1 + len(labels) : len(held)]).encode(errors="replace"))
        whole, first = made.decode(held[: len(held)]).encode(), made.bytes_of[held[:1][0]]
        assert validation.bytes == pytest.approx(len(whole) - left - first, abs=4)  # a letter may be cut
        assert read_manifest(folder / name).byte_ratio == 1.0


MISTAKES = [
    (lambda f: {"paths": [f / "bytes", f / "text"]}, "text: text (or nothing) beside prepared data sets"),
    (lambda f: {"paths": [f"0.5 {f / 'bytes'}", f / "bpe"]}, "some have a weight and others none"),
    (lambda f: {"paths": [f"0.5 {f / 'text'}"]}, "only prepared data sets have weights"),
    (
        lambda f: {"paths": [f"0 {f / 'bytes'}", f"1 {f / 'bpe'}"]},
        "a weight of 0; weights are numbers above 0",
    ),
    (lambda f: {"paths": [f / "bytes", f / "bytes"]}, "bytes twice; name it once"),
    (
        lambda f: {"paths": [f"-1 {f / 'bytes'}", f"2 {f / 'bpe'}"]},
        "bytes: a weight is a number above 0 in digits, such as 0.7",
    ),
    (
        lambda f: {"paths": [f"nan {f / 'bytes'}"]},
        "bytes: a weight is a number above 0 in digits, such as 0.7",
    ),
    (
        lambda f: {"paths": [f"inf {f / 'bytes'}", f"1 {f / 'bpe'}"]},
        "bytes: a weight is a number above 0 in digits, such as 0.7",
    ),
    (
        lambda f: {"paths": [f"1e3 {f / 'bytes'}", f"1 {f / 'bpe'}"]},
        "bytes: a weight is a number above 0 in digits, such as 0.7",
    ),
    (
        lambda f: {"paths": [f"0.123457 {f / 'bytes'}", f"1 {f / 'bpe'}"]},
        "give them with fewer digits, so that it is",
    ),
    (
        lambda f: {"paths": [f"1 {f / 'bytes'}", "1 nowhere"]},
        "nowhere: text (or nothing) beside prepared data sets",
    ),
    (lambda f: {"paths": [f / "bytes"], "validation": [f / "bytes"]}, "bytes is trained on too (data.paths)"),
    (
        lambda f: {"paths": [f / "bytes"], "validation": [f / "bpe", f"{f / 'bpe'}/"]},
        "data.validation names ",
    ),
    (lambda f: {"paths": [f / "text"], "validation": [f / "bytes"]}, "but data.paths names text"),
    (lambda f: {"validation": [f / "bytes"]}, "but data.paths names text"),
    (lambda f: {"paths": [f / "bytes"], "validation": [f / "text"]}, "text: no prepared data set"),
    (
        lambda f: {"paths": [f / "bpe"]},
        "and data.tokenizer = byte is another; set data.tokenizer=",
    ),
    (
        lambda f: {"paths": [f / "changed"], "tokenizer": _changed(f / "changed")},
        "changed/tokenizer.json is not the one that it was prepared with (",
    ),
    (
        lambda f: {"paths": [f / "bytes"], "tokenizer": f / "bpe300.json"},
        "prepared with the tokenizer byte (byte), and data.tokenizer = ",
    ),
]


def _changed(path: Path) -> Path:
    """A data set whose tokenizer.json was changed, and no byte more or less."""
    own = data_set(path, ["abcd"], str(path.parent / "bpe300.json")) / "tokenizer.json"
    own.write_text(own.read_text().replace('"single_word":false', '"single_word":true '))
    return own


@pytest.mark.parametrize(("settings", "words"), MISTAKES)
def test_mistakes_are_one_line(settings, words, folder):
    named = settings(folder)
    named = {k: str(v) if isinstance(v, Path) else [str(path) for path in v] for k, v in named.items()}
    with pytest.raises(ConfigError) as caught:
        find_corpus(Data(**named))
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_suffixes_have_no_effect_on_prepared_sets(folder):
    assert find_corpus(Data(paths=[str(folder / "bytes")])).warnings() == []
    said = find_corpus(Data(paths=[str(folder / "bytes")], suffixes=[".txt"])).warnings()
    assert said == ["data.suffixes = ['.txt'] has no effect: data.paths are prepared data sets"]


def test_a_weight_is_none_where_a_directory_has_that_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    data_set(folder / "2 sets", ["abc" * 50])
    assert find_prepared(Data(paths=["2 sets"])).training[0].name == "2 sets"
    found = find_prepared(Data(paths=["0.7 bytes", ".3 2 sets"]))
    assert found.weights == (7, 3) and found.name == "bytes (0.7), 2 sets (0.3)"


def anonymous_mib() -> float:
    """Memory of this process that is no mapped file's."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


@pytest.mark.alone
def test_twenty_gigabytes_open_at_once_and_take_no_memory(tmp_path):
    documents, length = 1_000_000, 10_000
    with (tmp_path / "tokens.bin").open("wb") as stream:
        stream.truncate(2 * documents * length)
    with (tmp_path / "tokens.idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x08")
        stream.write(np.array([documents, documents + 1], "<u8").tobytes())
        stream.write(np.full(documents, length, "<i4").tobytes())
        stream.write((np.arange(documents) * 2 * length).astype("<i8").tobytes())
        stream.write(np.arange(documents + 1).astype("<i8").tobytes())
    tokens = documents * length
    files = {name: [(tmp_path / name).stat().st_size, 0] for name in ("tokens.bin", "tokens.idx")}
    Manifest("byte", "byte", 257, 256, documents, tokens, tokens, tokens, 0, 0, 0, 0, files).write(tmp_path)
    data = Data(paths=[str(tmp_path)], sequence_length=2048, holdout=0.01)
    before, began = anonymous_mib(), time.perf_counter()
    batches = Batches(Text(find_corpus(data), build_tokenizer("byte")), data, Training(global_batch=64))
    for index in range(batches.micro_batches):
        batches(10**6, index)
    assert batches.windows == int(tokens * 0.99 - 1) // 2048 > 4_000_000
    assert time.perf_counter() - began < 1
    assert anonymous_mib() - before < 32  # a drawn order of these windows would be 37
