"""Who waits says whom for, within seconds, and every rank ends within the limit with the same line.

Ranks are threads here: the store's clients do not care.
"""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.platform import rendezvous as module
from hcmegatron.platform.distributed import device_index
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.platform.rendezvous import meet_ranks

BY_HAND = "the environment"


def meet(present, world, facts=None, limit=20.0, port=None, source=BY_HAND):
    """What every rank that is `present` ends with: a store, or the words of its error."""
    port = port or free_port()

    def one(rank):
        place = RankInfo(rank, world, rank, world, "127.0.0.1", port, source)
        try:
            return meet_ranks(place, (facts or {}).get(rank, {"a": "1"}), timedelta(seconds=limit))
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(one, present))


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(module, "FIRST_WORD_S", 0.4)


def test_ranks_that_agree_share_a_store():
    first, second, third = meet([0, 1, 2], 3)
    second.set("word", "said")
    assert first.get("word") == third.get("word") == b"said"


def test_one_rank_alone_needs_no_port():
    assert meet([0], 1, port=1)[0].check(["nothing"]) is False


@pytest.mark.parametrize("present, missing", [([0], "rank 1"), ([1], "rank 0")])
def test_who_is_missing_is_said_soon_and_at_the_end(present, missing, capsys):
    begin = time.monotonic()
    (error,) = meet(present, 2, limit=1.5)
    assert time.monotonic() - begin < 10
    assert error.startswith(f"{missing} of 2 did not come to 127.0.0.1:")
    assert "parallel.timeout_s = 2 s" in error and "MASTER_PORT" in error
    said = capsys.readouterr().err.splitlines()
    assert said and f"rank {present[0]}: waiting for {missing} of 2 at 127.0.0.1:" in said[0]
    assert len(said) <= 2  # ever more rarely


def test_under_a_launcher_one_rank_of_a_machine_speaks(capsys):
    errors = meet([0, 1], 4, limit=1.5, source="SLURM")
    assert all(error.startswith("ranks 2, 3 of 4 did not come") for error in errors)
    assert {line.split(":")[1] for line in capsys.readouterr().err.splitlines()} == {" rank 0"}


def test_every_rank_learns_what_differs():
    errors = meet([0, 1, 2], 3, facts={1: {"a": "2"}})
    assert set(errors) == {
        "a = 1 on ranks 0, 2, 2 on rank 1; start all ranks with the same configuration, data and versions"
    }


def test_a_rank_that_comes_twice():
    errors = meet([0, 1, 1], 3)
    assert all("two processes say that they are rank 1 of 3" in error for error in errors)


def test_a_port_that_another_program_has():
    with socket.socket() as foreign:
        foreign.bind(("0.0.0.0", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        (first,) = meet([0], 2, port=port)
        assert first.startswith(
            f"MASTER_PORT = {port} of this machine cannot be used (another program listens"
        )
        begin = time.monotonic()
        (second,) = meet([1], 2, limit=1.5, port=port)
        assert second.startswith(f"what listens at 127.0.0.1:{port} is not rank 0 of this job")
        assert time.monotonic() - begin < 10


def test_torchruns_store_leads_to_rank_0s_own(monkeypatch):
    agent = module.dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    first, second = meet([0, 1], 2, port=agent.port, source="torchrun")
    assert agent.get("hcmegatron port") != str(agent.port).encode()
    del agent  # the agent was killed
    second.set("word", "said")
    assert first.get("word") == b"said"


def test_ranks_that_torchrun_starts_anew_do_not_wait_for_the_rank_0_before(monkeypatch):
    agent = module.dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent.set("hcmegatron port", str(free_port()))  # where nothing listens any more
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    late = module._hold
    monkeypatch.setattr(module, "_hold", lambda *place: time.sleep(0.5) or late(*place))
    first, second = meet([0, 1], 2, port=agent.port, source="torchrun")
    second.set("word", "said")
    assert first.get("word") == b"said"


@pytest.mark.parametrize(
    "local_rank, ranks, visible, index", [(3, 4, 1, 0), (3, 4, 4, 3), (1, 2, 8, 1), (0, 1, 1, 0)]
)
def test_a_rank_takes_the_gpu_that_it_sees(local_rank, ranks, visible, index):
    assert device_index(local_rank, ranks, visible) == index


def test_fewer_gpus_than_ranks_are_refused():
    with pytest.raises(ConfigError, match="local rank 1 of 4 sees 2 GPUs; let every rank see all"):
        device_index(1, 4, 2)


def test_no_thread_is_left_that_keeps_the_process():
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "rendezvous")
