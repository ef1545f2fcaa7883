"""Texts from a checkpoint: the training's logits, and the same tokens in every layout."""

import json

import numpy as np
import pytest

from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.evaluate import generation
from hcmegatron.evaluate.generation import Continuation, NotFinite, generate, padded
from hcmegatron.evaluate.sampling import GREEDY
from hcmegatron.training import manifest
from tests.evaluate import generation_workers
from tests.ranks import run_ranks
from tests.small_configs import put, small

RUN = {"preload": ("tests.evaluate.generation_workers",), "timeout": 120}
TOKENS = 6
PIPELINES = {
    "megatron_1f1b": ["--parallel.pipeline=2"],
    "1f1b": ["--parallel.pipeline=2", "--parallel.schedule=1f1b"],
    "dualpipev": ["--parallel.pipeline=2", "--parallel.schedule=dualpipev"],
    "dualpipe": ["--parallel.pipeline=2", "--parallel.schedule=dualpipe"],
    "interleaved": ["--parallel.pipeline=2", "--parallel.virtual=2", "--parallel.schedule=interleaved"],
}
LAYOUTS = {
    **PIPELINES,
    "megatron_interleaved": [*PIPELINES["interleaved"][:2], "--parallel.schedule=megatron_interleaved"],
    "tensor": ["--parallel.tensor=2"],
    "sequence": ["--parallel.tensor=2", "--parallel.sequence=true"],
    "data": [],
    "expert": ["--parallel.expert=2"],
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The checkpoint of a network of this architecture and connection after three steps, made once."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    made = {}

    def make(architecture, connection):
        if (architecture, connection) not in made:
            run = folder / f"{architecture}-{connection}"
            config = put(
                small(architecture, connection),
                data={"paths": [str(text)], "holdout": 0.0, "sequence_length": 24},
                optimizer={"lr": 3e-2, "eps": 1e-8, "warmup_steps": 0, "schedule": "constant"},
                training={"steps": 3, "threads": 1},
                run={"dir": str(run), "tensorboard": False, "peak_tflops": 0.01},
            )
            run_ranks(1, generation_workers.trained, config, process_group=False, **RUN)
            made[architecture, connection] = run / "checkpoints" / manifest.name(3)
        return made[architecture, connection]

    return make


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("architecture", "connection"),
    [("dense", "residual"), ("dense", "mhc"), ("moe", "mhc"), ("moe", "residual"), ("dense", "dhc")],
)
def test_logits_are_those_of_a_forward_in_training_bit_for_bit(network, architecture, connection):
    path = network(architecture, connection)
    (expected,) = run_ranks(1, generation_workers.training_forward, path, **RUN)
    ((alone,),) = run_ranks(1, generation_workers.said, path, [[]], 1, **RUN)
    assert len(expected) == len(alone.logits) == 3
    for number, logits in alone.logits.items():
        assert np.array_equal(logits, expected[number]) and logits.std() > 0.1


@pytest.mark.ranks
@pytest.mark.parametrize(("architecture", "connection"), [("moe", "mhc"), ("dense", "dhc")])
def test_texts_are_the_same_in_every_layout(network, architecture, connection):
    path = network(architecture, connection)
    # experts under tensor parallelism need sequence parallelism in Megatron
    layouts = {
        n: words for n, words in LAYOUTS.items() if n != {"dense": "expert", "moe": "tensor"}[architecture]
    }
    ((alone,),) = run_ranks(1, generation_workers.said, path, [[]], TOKENS, **RUN)
    assert len({tuple(text) for text in alone.drawn}) == 3 and alone.drawn != alone.greedy
    ranks = run_ranks(2, generation_workers.said, path, list(layouts.values()), TOKENS, **RUN)
    for name, *both in zip(layouts, *ranks, strict=True):
        assert both[0].greedy == both[1].greedy == alone.greedy, name
        assert both[0].drawn == both[1].drawn == alone.drawn, name
        logits = both[0].logits | both[1].logits
        assert logits.keys() == alone.logits.keys(), name
        for number, row in logits.items():
            np.testing.assert_allclose(row, alone.logits[number], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.ranks
def test_the_verb_says_texts_in_any_layout_and_stops_at_the_end_of_a_document(network, tmp_path):
    path = network("dense", "dhc")
    words = ["generate", str(path.parent.parent), "--prompt=line 12", "--prompt=a", "--seed=7", "--tokens=9"]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "line 12"}\n{"prompt": "a"}\n')
    calls = [  # ranks are forked before anything is computed
        [*words, "--json", "--parallel.pipeline=2", "--parallel.schedule=dualpipe"],
        words,
        [*words, "--json"],
        [*words[:2], f"--prompts={prompts}", *words[4:], "--json"],
        ["generate", str(path), "--prompt=line 12", "--seed=7", "--tokens=9", "--top-p=1", "--temperature=1"],
        ["generate", str(path), "--prompt=" + "line 12: ab" * 2, "--greedy", "--json"],
    ]
    run = {**RUN, "timeout": 100, "process_group": False}
    ((two, shown, *as_json, alone, full),) = run_ranks(1, generation_workers.commands, calls, **run)
    assert {said[0] for said in (two, shown, *as_json, alone, full)} == {0}
    assert "hcmegatron:" not in shown[2] + alone[2]  # Megatron's own warnings are there too
    assert as_json[0][1] == as_json[1][1] == two[1]
    first, second = map(json.loads, as_json[0][1].splitlines())
    assert first.keys() == {"prompt", "text", "tokens", "ended", "step"}
    assert (first["prompt"], second["prompt"], first["step"]) == ("line 12", "a", 3)
    assert ByteTokenizer().decode(first["tokens"]) == first["text"] != second["text"]
    texts = [plain(said["prompt"] + said["text"]) for said in (first, second)]
    assert shown[1] == f"--- prompt 1 of 2\n{texts[0]}\n--- prompt 2 of 2\n{texts[1]}\n"
    assert alone[1] == f"{texts[0]}\n"
    said = json.loads(full[1])  # 22 of 24 tokens are given, and the last one that is chosen is not read
    assert len(said["tokens"]) == 3 or said["ended"]


def plain(text):
    """As a terminal may see it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


class Scripted:
    """A network whose likeliest next tokens are these, text by text; 256 ends a document."""

    def __init__(self, *texts):
        self.texts, self.tokenizer, self.asked = texts, ByteTokenizer(), []

    def logits(self, texts):
        self.asked.append(len(texts))
        found = {}
        for number, text in enumerate(texts):
            found[number] = np.zeros(257, np.float32)
            found[number][self.texts[text[0]][len(text) - 1]] = 1
        return found


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(generation.dist, "all_reduce", lambda tensor: None)


def test_a_text_ends_with_its_document_and_is_run_no_more(one_rank):
    network = Scripted([65, 66, 67, 68], [66, 256, 1, 1], [256, 1, 1, 1])
    texts = generate(network, [[0], [1], [2]], 4, GREEDY)
    assert [text.tokens for text in texts] == [[65, 66, 67, 68], [66], []]
    assert [text.ended for text in texts] == [False, True, True]
    assert network.asked == [3, 2, 1, 1]
    network.asked.clear()
    assert generate(network, [[2]], 4, GREEDY)[0].ended and network.asked == [1]


def test_a_stop_is_heard_before_every_token(one_rank):
    network, answers = Scripted([65, 66, 67, 68]), [False, False, True]
    assert generate(network, [[0]], 4, GREEDY, lambda: answers.pop(0)) is None
    assert network.asked == [1, 1] and answers == []


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_said(one_rank, odd):
    network = Scripted([65, odd])
    network.logits = lambda texts: {0: np.float32([0, odd])}
    with pytest.raises(NotFinite, match=r"^the logits behind token 0 of text 0 are not finite$"):
        generate(network, [[0]], 4, GREEDY)


def test_a_text_is_what_follows_its_prompt():
    bytes_ = ByteTokenizer()
    half, rest = list("é".encode()[:1]), list("é".encode()[1:])
    assert Continuation(list(b"caf"), list("é!".encode())).text(bytes_) == "é!"
    assert Continuation(list(b"caf") + half, [*rest, 33]).text(bytes_) == "\ufffd!"  # decoded by themselves
    assert Continuation([97], [200, 98, 0xFF]).text(bytes_) == "\ufffdb\ufffd"


def test_texts_are_padded_to_few_lengths_and_never_beyond_a_sequence():
    config = put(small("dense", "residual"), data={"sequence_length": 300})
    assert [padded(length, config) for length in (1, 64, 65, 290, 300)] == [64, 64, 128, 300, 300]
    put(config, parallel={"tensor": 3, "sequence": True})
    assert [padded(length, config) for length in (1, 193)] == [192, 300]
