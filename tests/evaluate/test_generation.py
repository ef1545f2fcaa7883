"""Texts from a checkpoint: the training's logits, and the same tokens in every layout."""

import numpy as np
import pytest

from hcmegatron.training import manifest
from tests.evaluate import generation_workers
from tests.ranks import run_ranks
from tests.small_configs import put, small

RUN = {"preload": ("tests.evaluate.generation_workers",), "timeout": 120}
TOKENS = 8
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
                training={"steps": 3},
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
    assert len(expected) == len(alone.logits) == 5
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
    assert len({tuple(text) for text in alone.drawn}) > 3 and alone.drawn != alone.greedy
    ranks = run_ranks(2, generation_workers.said, path, list(layouts.values()), TOKENS, **RUN)
    for name, *both in zip(layouts, *ranks, strict=True):
        assert both[0].greedy == both[1].greedy == alone.greedy, name
        assert both[0].drawn == both[1].drawn == alone.drawn, name
        logits = both[0].logits | both[1].logits
        assert logits.keys() == alone.logits.keys(), name
        for number, row in logits.items():
            np.testing.assert_allclose(row, alone.logits[number], rtol=1e-4, atol=1e-4, err_msg=name)
