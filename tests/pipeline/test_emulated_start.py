"""What a run on a GPU says before anything is started, in which it could hang."""

import pytest

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import run, setup
from schedules.runtime.gpu import GPU


class Started(Exception):
    """Process groups would be made now."""


@pytest.mark.parametrize(
    ("queues", "gpu", "rank", "warned"),
    [("8", True, 0, True), ("32", True, 0, False), ("8", False, 0, False), ("8", True, 1, False)],
)
def test_few_queues_are_warned_of_before_process_groups_and_models(
    monkeypatch, capfd, queues, gpu, rank, warned
):
    def start(*_):
        raise Started

    config = Config()
    config.parallel.pipeline, config.parallel.schedule, config.parallel.overlap = 4, "dualpipev", True
    config.moe.experts = 4
    monkeypatch.setattr(GPU, "present", lambda: gpu)
    monkeypatch.setattr(run, "process_groups", start)
    monkeypatch.setattr(setup, "build_model", lambda *_: pytest.fail("a model before process groups"))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", queues)
    with pytest.raises(Started):
        run.train(config, RankInfo(rank, 4, rank, 4, "127.0.0.1", 1, "test"))
    said = capfd.readouterr().err
    assert ("WARNING: CUDA_DEVICE_MAX_CONNECTIONS=8, and this rank's work is on 15 streams" in said) == warned
