"""The comparison of dtypes sees how far row sums are from 1, in the last step alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hcmegatron.config import Config
from hcmegatron.training.observer import Coefficients
from tools import compare_dtypes
from tools.compare_dtypes import Comparison


def test_row_sums_of_the_last_step(monkeypatch):
    config = Config()
    config.training.steps = 7
    monkeypatch.setattr(compare_dtypes, "unwrap", lambda chunk: chunk)
    watching = Comparison(SimpleNamespace(config=config, chunks=[nn.Linear(2, 2)]))
    assert [step for step in range(1, 8) if watching.wants_coefficients(step)] == [7]
    res = torch.tensor([[0.75, 0.25], [0.5, 0.5 + 1e-4]]).expand(3, 1, 2, 2)
    watching.on_coefficients(Coefficients(7, 0, (res[..., 0], res[..., 0], res)))
    assert watching.deviations == pytest.approx([1e-4], rel=1e-2) and watching.dtypes == set()
