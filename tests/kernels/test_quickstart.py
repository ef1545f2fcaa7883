"""The quickstart on the Triton kernels, in the interpreter: the losses of the torch path."""

import json

import pytest
import torch

from hcmegatron.config import load_config
from tests.ranks import ROOT, run_ranks
from tests.training import workers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the interpreter would not be used"),
]
# Ranks inherit TRITON_INTERPRET, which conftest.py has set before any of them was started.
RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 240}
# The file's own model and layout. Fewer tokens, because the interpreter takes a third of a second a
# connection: as few micro-batches as DualPipeV over two ranks may have, and no evaluation.
SHORT = (
    "training.steps=3",
    "training.global_batch=4",
    "training.micro_batch=1",
    "data.sequence_length=8",
    "data.holdout=0",
    "run.tensorboard=false",
    "run.peak_tflops=1",
)


def train(kernels, directory, *settings):
    """Three steps of configs/quickstart.yaml: their metrics, and what the run said."""
    overrides = [f"--{key}" for key in (*SHORT, f"kernels={kernels}", f"run.dir={directory}", *settings)]
    config = load_config(ROOT / "configs/quickstart.yaml", overrides)
    run_ranks(2, workers.run, config, **RUN)
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return metrics, (directory / "train.log").read_text().splitlines()


def test_triton_gives_the_losses_of_torch(tmp_path):
    reference, said = train("torch", tmp_path / "torch")
    assert "kernels: torch: asked for" in said
    ours, said = train("triton", tmp_path / "triton")
    assert "kernels: triton: n=4, fp32, interpreter" in said
    for key in ("loss", "grad_norm"):
        assert [m[key] for m in ours] == pytest.approx([m[key] for m in reference], rel=1e-5), key
    # The updates, and so the gradients, count: without them the same batches have other losses.
    still, _ = train("torch", tmp_path / "still", "optimizer.lr=1e-12")
    assert len(reference) == 3 and still[0]["loss"] == reference[0]["loss"]
    assert all(abs(still[i]["loss"] - reference[i]["loss"]) > 0.01 for i in (1, 2))
