"""How losses are averaged, and that gradients are those of the loss that is logged."""

import pytest
import torch

from hcmegatron.training.loss import token_loss
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import loss_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120}


def test_a_micro_batch_by_hand():
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    total, weight, logged = token_loss(mask, losses)
    assert (total.item(), weight.item(), weight.dtype) == (37.0, 3, torch.int32)
    assert logged["loss"].tolist() == [37.0, 3.0, 37.0] and not logged["loss"].requires_grad


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (1, {"pipeline": 1}),
        (2, {"schedule": "megatron_1f1b"}),
        (2, {"schedule": "1f1b"}),
        (2, {"pipeline": 1}),
    ],
    ids=["alone", "Megatron's 1F1B", "1F1B", "data parallel"],
)
def test_gradients_are_those_of_the_loss_in_the_log(ranks, parallel, text, tmp_path):
    """Along the gradient, by finite differences, with micro-batches that weigh unequally. A sum, a weight or a scale
    that is changed in one place alone fails here."""
    config = tiny(text, tmp_path / "run", parallel=parallel)
    config.model.hidden_dropout, config.training.global_batch = 0.0, 4
    config.moe.experts = config.moe.first_dense = 0
    for slope, squared in run_ranks(ranks, loss_workers.slope, config, **RUN):
        assert slope == pytest.approx(squared, rel=2e-3)


@pytest.mark.ranks
def test_the_logged_loss_is_over_all_tokens_that_count(text, tmp_path):
    """Not the mean of the micro-batches' means: they weigh unequally."""
    config = tiny(text, tmp_path / "run", parallel={"pipeline": 1})
    config.model.hidden_dropout, config.training.global_batch = 0.0, 4
    for logged, by_hand, of_means in run_ranks(2, loss_workers.logged, config, **RUN):
        assert logged == pytest.approx(by_hand, rel=1e-6) and abs(logged - of_means) > 1e-4
