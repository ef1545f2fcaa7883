"""Muon's momentum in checkpoints: a run goes on with the same bits, and any layout reads what another wrote."""

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.training import resume
from tests.ranks import run_ranks
from tests.training import workers
from tests.training.reshard_cases import RUN, content, differing, network

pytestmark = pytest.mark.ranks

MUON = {"name": "muon"}
SHARDED = {"distributed_optimizer": True}
FIRST = {"expert": 2, **SHARDED}
# What reads what the one before wrote: data-parallel shards, tensor-parallel parts, experts, stages, mirrors, bf16.
ROUTES = [
    (2, {"tensor": 2, "sequence": True}, "fp32"),
    (2, {**SHARDED}, "fp32"),
    (2, {"pipeline": 2, "schedule": "dualpipe", "distributed_optimizer": False}, "bf16"),
    (1, {}, "fp32"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of four ranks, with its hashes by step and rank."""
    folder = tmp_path_factory.mktemp("muon")
    text = folder / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    config = network(text, folder / "whole", {"pipeline": 2, **FIRST}, optimizer=MUON)
    return text, folder, run_ranks(4, workers.run, config, **RUN)


def test_a_run_goes_on_with_the_same_bits(written, tmp_path):
    text, folder, whole = written
    start = {"load": str(folder / "whole/checkpoints/step-00000002")}
    again = network(text, tmp_path / "again", {"pipeline": 2, **FIRST}, optimizer=MUON, checkpoint=start)
    for ours, reference in zip(run_ranks(4, workers.run, again, **RUN), whole, strict=True):
        assert set(reference) == {1, 2, 3} and ours == {3: reference[3]}


def test_any_layout_reads_what_another_wrote(written, tmp_path):
    text, folder, _ = written
    path = folder / "whole/checkpoints/step-00000002"
    original = content(path)
    moments = {key.split(".")[2] for key in original if key.startswith("optimizer.state.")}
    assert moments == {"momentum_buffer", "exp_avg", "exp_avg_sq"}
    ours = "optimizer.state.momentum_buffer.decoder.layers.0.self_attention.linear_proj.weight"
    assert ours in original and ours.replace("momentum_buffer", "exp_avg") not in original
    for number, (ranks, parallel, dtype) in enumerate(ROUTES):
        config = network(
            text, tmp_path / f"{number}", parallel, dtype, optimizer=MUON, checkpoint={"load": str(path)}
        )
        for rank in run_ranks(ranks, workers.saved_again, config, tmp_path / f"{number}/again", **RUN):
            assert rank["rounded otherwise"] == []
        path = tmp_path / f"{number}/again/step-00000002"
        assert differing(content(path), original) == []


def test_another_optimizer_is_refused(written):
    text, folder, _ = written
    load = {"load": str(folder / "whole")}
    config = network(text, folder / "other", {"pipeline": 2, **FIRST}, checkpoint=load)
    with pytest.raises(ConfigError, match=r"of another optimizer: optimizer\.name = muon there, adamw here"):
        resume.find_start(config, folder / "other", "text")
