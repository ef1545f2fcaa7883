"""Messages through shared memory: what arrives, and what is said where nothing can."""

import json
import os
import re
import socket
import threading
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
import torch.multiprocessing

from schedules.actions import B
from schedules.runtime import PipelineError, local_peers
from schedules.runtime.p2p import P2PChannels
from schedules.runtime.shared_memory import COPIED_AT_ONCE_ON_BUSY_CORES
from schedules.runtime.shared_slots import IncomingSlots, OutgoingSlots
from tests.ranks import observe_ranks, run_ranks
from tests.runtime import shared_workers

pytestmark = pytest.mark.ranks
RUN = {"preload": ("torch.distributed", "tests.runtime.shared_workers"), "timeout": 60}


def test_every_tensor_arrives_and_slots_are_used_again():
    assert run_ranks(2, shared_workers.exchange, **RUN) == [[], []]


def test_ranks_that_were_spawned(tmp_path):
    torch.multiprocessing.spawn(shared_workers.spawned, (str(tmp_path / "store"),), nprocs=2)


def test_more_messages_than_a_connection_holds():
    assert run_ranks(2, shared_workers.crowd, 2000, **RUN) == [True, True]


def test_slots_are_no_more_than_messages_under_way_at_once():
    """How many that is depends on who is faster; after a step there are none."""
    for counts, messages in run_ranks(4, shared_workers.slots, 8, **RUN):
        assert max(counts) <= messages, counts


def test_word_of_receives_and_slots_leaves_with_messages():
    """And where a rank waits. Each by itself made three writes a message."""
    for writes, messages in run_ranks(2, shared_workers.written, 16, **RUN):
        assert messages == 16 and messages <= writes <= 2 * messages + 4, writes


def test_a_sender_that_was_quicker_need_not_wait_for_the_next_message():
    assert run_ranks(2, shared_workers.quicker_sender, 0, **RUN) == [0, 3]


def test_flushed_word_of_a_receive_leaves_at_once():
    assert run_ranks(2, shared_workers.flushed, 0, **RUN) == [0, 3]


def test_messages_take_no_descriptors_and_a_dropped_transport_leaves_nothing():
    for under_way, after in run_ranks(2, shared_workers.many_and_dropped, 200, **RUN):
        assert under_way == (2, 400)  # this rank's memory and its peer's
        assert after == (0, 0)


def test_a_transport_that_is_dropped_with_words_unsaid_leaves_nothing():
    for before, after in run_ranks(2, shared_workers.dropped_while_holding, **RUN):
        assert (before, after) == (2, 0)


@pytest.mark.parametrize("contiguous", [True, False])
def test_what_is_passed_on_is_sent_as_it_was(contiguous):
    """From a slot that is written to again before the thread has copied it, and with a graph."""
    elements = COPIED_AT_ONCE_ON_BUSY_CORES // 2
    assert run_ranks(2, shared_workers.passed_on, elements, contiguous, **RUN) == [elements, 0.0]


def test_what_cannot_be_given_back_is_told_with_its_place():
    pool = mock.Mock()
    pool.give_back.side_effect = RuntimeError("timed out\nand more")
    program = mock.Mock(depths={}, posts=None, receives={})
    channels = P2PChannels(mock.Mock(), pool, lambda _: (), program, "rank 1")
    channels._held[2, 3].append(torch.empty(1))
    with pytest.raises(PipelineError) as told:
        channels.release(B(2, 3))
    assert str(told.value) == "rank 1: could not give back what 2B3 received: timed out"


def test_no_memory_is_told_as_transports_do():
    with ExitStack() as opened:
        memory = local_peers._memory(opened)
        assert OutgoingSlots(memory).add(8).capacity == 4096
        with pytest.raises(RuntimeError, match=r"no shared memory for a message of \d+ bytes: "):
            OutgoingSlots(memory).add(1 << 62)
    with pytest.raises(RuntimeError, match=r"no shared memory for a message of 4096 bytes: .*Bad file"):
        IncomingSlots(memory).at(0, 4096)


@pytest.mark.parametrize("elements", [3, 5])
def test_a_message_of_the_wrong_size(elements):
    assert run_ranks(2, shared_workers.wrong_size, elements, **RUN) == [
        "",
        f"{4 * elements} bytes of rank 0 came where 16 were expected",
    ]


def test_a_wait_ends():
    _, (took, told) = run_ranks(2, shared_workers.silent, 0.5, **RUN)
    assert told == "timed out after 0.5 s without a word of rank 0"
    assert 0.4 < took < 5


@pytest.mark.parametrize("sends", [False, True], ids=["receiving", "sending"])
def test_a_peer_that_is_killed_is_noticed_and_leaves_nothing(sends, tmp_path):
    observe_ranks(2, shared_workers.lost, tmp_path, sends, **RUN)
    seconds, told, names, left = json.loads((tmp_path / "told").read_text())
    assert told.startswith("rank 0 is gone: ") and seconds < 10
    # no file, which would outlive its last process; who only receives has got nothing yet
    assert names == ["/memfd:hcmegatron (deleted)"] * sends and left == 0


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("", "SharedMemoryTransport: shared memory"),
        ("memfd", "DistributedTransport: gloo: shared memory cannot be had: .*Function not implemented"),
        ("machine", "DistributedTransport: gloo: the ranks of a pipeline are on several machines"),
        (
            "connect",
            # and rank 0, which has waited for it, does not until its time is out
            "DistributedTransport: gloo: (?!.*timed out).*rank 1 could not connect with its neighbours: out of order",
        ),
    ],
)
def test_gloo_where_it_cannot_be_shared(trouble, said):
    found = run_ranks(2, shared_workers.chosen, trouble, **RUN)
    assert found[0] == found[1] and re.fullmatch(said, found[0])


def test_a_stranger_is_not_taken_for_a_neighbour(monkeypatch):
    """One has another token, one leaves at once, and one says nothing."""
    monkeypatch.setattr(local_peers, "HELLO_S", 0.2)
    with ExitStack() as opened:
        listener, card = local_peers._listen(opened, 2)
        for kind in ("token", "leaves", "silent"):
            stranger = opened.enter_context(socket.socket(socket.AF_UNIX))
            stranger.connect(card.address)
            if kind == "token":
                memory = local_peers._memory(opened)
                socket.send_fds(stranger, [local_peers._HELLO.pack(3, b"0" * 16)], [memory])
            elif kind == "leaves":
                stranger.close()
        called = []
        caller = threading.Thread(target=lambda: called.append(local_peers._call(opened, 5, 0, card)))
        caller.start()
        found = local_peers._answer(opened, listener, card.token)
        caller.join()
        assert (found.rank, called[0].rank) == (5, 0)
        assert not os.get_inheritable(found.incoming) and not os.get_inheritable(called[0].incoming)
        os.write(found.outgoing, b"to the caller")
        assert os.pread(called[0].incoming, 20, 0) == b"to the caller"


def test_nobody_but_strangers(monkeypatch):
    monkeypatch.setattr(local_peers, "MEETING_S", 0.3)
    with ExitStack() as opened:
        listener, card = local_peers._listen(opened, 1)
        stranger = opened.enter_context(socket.socket(socket.AF_UNIX))
        stranger.connect(card.address)
        with pytest.raises(TimeoutError, match="timed out"):
            local_peers._answer(opened, listener, card.token)
