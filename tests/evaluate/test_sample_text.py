"""training.eval_prompt: the text of every evaluation, which changes nothing of the training."""

import json
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.training.sample_text import sampled_prompt
from tests.evaluate import generation_workers
from tests.ranks import run_ranks
from tests.small_configs import small_config, tiny

RUN = {
    "preload": ("tests.evaluate.generation_workers",),
    "process_group": False,
    "timeout": 120,
    "grace": 10.0,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path


@pytest.mark.ranks
def test_a_text_is_that_of_the_checkpoint_and_nothing_else_changes(text, tmp_path):
    found = {}
    for name, prompt in (("without", None), ("with", "line 1")):
        config = tiny(
            text,
            tmp_path / name,
            training={"eval_every": 2, "eval_prompt": prompt, "eval_tokens": 9, "threads": 1},
            optimizer={"lr": 0.03},
            parallel={"pipeline": 2, "schedule": "1f1b"},
        )
        found[name] = run_ranks(2, generation_workers.watched, config, **RUN)
    for without, with_text in zip(found["without"], found["with"], strict=True):
        assert without[0] == with_text[0] and without[0].keys() == {2, 4}
        assert (without[1], with_text[1]) == (0, 2)
    lines = {name: ranks[0][2] for name, ranks in found.items()}
    figures = ("step", "kind", "loss", "grad_norm")
    assert [[line.get(f) for f in figures] for line in lines["without"]] == [
        [line.get(f) for f in figures] for line in lines["with"]
    ]
    assert not any("sample" in line for line in lines["without"])
    samples = {line["step"]: line["sample"] for line in lines["with"] if "sample" in line}
    assert samples.keys() == {2, 4}
    log = Path(tmp_path / "with" / "train.log").read_text()
    words = ["generate", str(tmp_path / "with"), "--prompt=line 1", "--greedy", "--tokens=9", "--json"]
    calls = [[*words, f"--step={step}"] for step in samples]
    (said,) = run_ranks(1, generation_workers.commands, calls, **RUN)
    for (step, sample), (status, out, _) in zip(samples.items(), said, strict=True):
        alone = json.loads(out)
        assert (status, alone["text"], alone["step"]) == (0, sample, step)
        assert len(alone["tokens"]) == 9 or alone["ended"]
        shown = "".join(c if c.isprintable() else "\ufffd" for c in json.dumps(sample, ensure_ascii=False))
        assert f"\n  line 1 -> {shown}\n" in log


def test_a_prompt_has_to_fit_a_sequence():
    config = small_config("mhc", False, data={"sequence_length": 8}, training={"eval_prompt": "abcdefgh"})
    assert sampled_prompt(config, ByteTokenizer()) == list(b"abcdefgh")
    config.training.eval_prompt = "abcdefghi"
    with pytest.raises(ConfigError) as caught:
        sampled_prompt(config, ByteTokenizer())
    assert str(caught.value) == (
        "training.eval_prompt = abcdefghi: has 9 tokens, and the network was trained on 8 (data.sequence_length); give "
        "a shorter prompt"
    )
