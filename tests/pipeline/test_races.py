"""No tensor is read before it is written, and none outlives its memory, on the streams of an overlapped step.

Emulated: the operations run on CPU, one after another; what is checked is what the streams were told to wait for.
"""

import pytest

from hcmegatron.config.schema import Config
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks
RUN = {"preload": ("tests.pipeline.race_workers",), "timeout": 250}


def config_for(kind="mhc", pipeline=1, schedule="dualpipev", overlap=True, **sections):
    config = Config()
    m, e, p, t = config.model, config.moe, config.parallel, config.training
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = 4, 32, 2, 32
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 4, 2, 32, 1, 1
    config.connection.kind, config.data.sequence_length = kind, 16
    p.schedule, p.pipeline, p.overlap = schedule, pipeline, overlap
    t.global_batch, t.micro_batch, t.dtype, t.threads = 12, 2, "bf16", 1
    config.kernels = "torch"
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


ALONE = [
    config_for(),
    config_for(recompute={"mode": "block"}, model={"hidden_dropout": 0.1}),
    config_for(recompute={"mode": "full"}),
    config_for("dhc", model={"norm_position": "post"}),
    config_for("dfc", moe={"shared_experts": 0, "first_dense": 0}),
]


def ranks_found(world, configs, *arguments):
    return run_ranks(world, "tests.pipeline.race_workers:found", configs, *arguments, **RUN)


def test_one_rank_with_both_ends_of_a_v():
    (results,) = ranks_found(1, ALONE, 2)
    for config, found in zip(ALONE, results, strict=True):
        assert found.findings == [], (config.connection.kind, config.recompute)
        lanes = sum(stream.startswith("side") for stream in found.operations)
        assert lanes == (0 if config.recompute.mode == "full" else 2)
        assert found.operations["compute"] > 1000


@pytest.mark.parametrize(
    ("without", "words"),
    [("waits", "before it is written"), ("recorded streams", "given away while in use")],
)
def test_what_is_taken_away_is_missed(without, words):
    ((found,),) = ranks_found(1, ALONE[:1], 2, without)
    assert sum(words in finding for finding in found.findings) > 3
    for finding in found.findings:
        assert ".py:" in finding.partition("[")[2]


ACROSS = [
    config_for(pipeline=2),
    config_for(pipeline=2, schedule="dualpipe", recompute={"mode": "block"}),
    config_for(pipeline=2, schedule="1f1b", overlap=False),
    config_for(pipeline=2, schedule="zb_v", overlap=False),
]


@pytest.fixture(scope="module")
def across():
    return ranks_found(2, ACROSS, 4)


def test_two_ranks_with_messages_on_streams_of_their_own(across):
    for config, *ranks in zip(ACROSS, *across, strict=True):
        for found in ranks:
            assert found.findings == [], config.parallel
            assert sum(stream.startswith("nccl") for stream in found.operations) >= 2


def test_messages_over_streams_give_the_gradients_of_the_cpu(across):
    """Bit for bit: the transport for GPUs, with receives posted late, beside gloo's."""
    plain = run_ranks(2, "tests.pipeline.race_workers:plain", ACROSS, 4, **RUN)
    for emulated, own in zip(across, plain, strict=True):
        for config, found, gradients in zip(ACROSS, emulated, own, strict=True):
            assert len(gradients) > 20
            assert found.gradients == gradients, config.parallel


def test_messages_that_nobody_waits_for_are_found():
    for (found,) in ranks_found(2, ACROSS[2:3], 4, "waits"):
        assert any("nccl" in finding for finding in found.findings)
