"""What carries a pipeline's messages, and what is said of it."""

import pytest

from hcmegatron.config.schema import Parallel
from hcmegatron.pipeline import runner


@pytest.mark.parametrize(
    ("gpu", "ranks", "transport", "said"),
    [
        (False, 2, "gloo", "gloo: parallel.transport"),
        (True, 2, "gloo", "NCCL, for parallel.transport is of CPUs"),
        (True, 2, "auto", ""),
        (True, 1, "gloo", ""),
    ],
)
def test_what_is_asked_for_and_not_done_is_said(gpu, ranks, transport, said, monkeypatch):
    monkeypatch.setattr(runner.GPU, "present", lambda: gpu)
    monkeypatch.setattr(runner, "DistributedTransport", lambda *_, **__: "torch.distributed's")
    monkeypatch.setattr(runner, "device", lambda: None)
    group = type("Group", (), {"size": lambda _: ranks})()
    found = runner.pipeline_transport(Parallel(transport=transport), group, None)
    assert found == ("torch.distributed's", said)
