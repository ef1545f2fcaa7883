"""The flag that signals raise, in one process: which ones, what is said, what all ranks agree on."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from hcmegatron.platform.rank_process import TORCHRUN_ENDED
from hcmegatron.training import stopping
from hcmegatron.training.stopping import StopFlag

HEARD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
SAID = "hcmegatron: SIGINT: ending after this step, with a checkpoint; again: at once\n"


@pytest.fixture
def ranks(monkeypatch):
    """This process as a rank among others: its rank, what the largest of the others says, how often it was asked."""
    others = SimpleNamespace(rank=0, largest=0, asked=0, devices=[])

    def all_reduce(number, operation):
        assert operation is torch.distributed.ReduceOp.MAX
        others.asked += 1
        number.clamp_(min=others.largest)

    before = {number: signal.signal(number, signal.SIG_DFL) for number in (*HEARD, TORCHRUN_ENDED)}
    dist = SimpleNamespace(
        get_rank=lambda: others.rank, all_reduce=all_reduce, ReduceOp=torch.distributed.ReduceOp
    )
    monkeypatch.setattr(stopping, "dist", dist)
    monkeypatch.setattr(stopping, "device", lambda: others.devices.append(1) or torch.device("cpu"))
    yield others
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HEARD, ids=lambda number: number.name)
def test_a_signal_is_noted_and_agreed_on(ranks, number):
    flag = StopFlag()
    assert not flag.agreed() and flag.name == "" and flag.asked is None
    signal.raise_signal(number)
    assert flag.asked == number and flag.name == ""  # until the others know
    assert flag.agreed() and flag.name == number.name and ranks.asked == 2 and not flag.orphaned
    assert len(ranks.devices) == 2  # where the group's collectives are
    assert flag.agreed() and ranks.asked == 2  # what is agreed on is not asked again


def test_another_ranks_signal_counts(ranks):
    flag = StopFlag()
    ranks.largest = int(signal.SIGTERM)
    assert flag.agreed() and flag.asked is None and flag.name == "SIGTERM"


def test_the_end_of_a_torchrun_is_every_ranks_reason(ranks):
    flag = StopFlag()
    signal.raise_signal(TORCHRUN_ENDED)
    assert not flag.orphaned and flag.agreed() and flag.orphaned
    assert flag.name == "SIGRTMIN (a rank's torchrun has ended)"
    other = StopFlag()
    ranks.largest = int(TORCHRUN_ENDED)
    signal.raise_signal(signal.SIGTERM)
    assert other.agreed() and other.orphaned


def test_the_first_of_several_signals_is_the_reason(ranks):
    flag = StopFlag()
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert flag.asked == signal.SIGUSR1


def test_what_is_ignored_stays_ignored(ranks):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopFlag()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_interrupt_is_answered_and_the_next_one_is_the_systems(ranks, capfd):
    flag = StopFlag()
    signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == "" and signal.getsignal(signal.SIGINT) == flag._ask
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == SAID and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert flag.asked == signal.SIGTERM


def test_a_rank_that_the_command_started_hears_an_interrupt_twice(ranks, capfd):
    flag = StopFlag(launched=True)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == SAID and signal.getsignal(signal.SIGINT) == flag._ask
    ranks.rank = 1
    silent = StopFlag(launched=True)
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "" and silent.asked == signal.SIGINT


@pytest.fixture
def standard_error():
    """Puts another descriptor in its place, until the test ends."""
    kept = os.dup(2)
    yield lambda descriptor: os.dup2(descriptor, 2)
    os.dup2(kept, 2)
    os.close(kept)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("broken", ["closed", "read by nobody", "full"])
def test_a_standard_error_that_takes_nothing_keeps_no_signal(ranks, standard_error, broken):
    """The signal counts, nothing is raised within what it interrupts, and nothing waits for a reader."""
    reader, writer = os.pipe()
    standard_error(writer)
    if broken == "closed":
        os.close(2)
    elif broken == "read by nobody":
        os.close(reader)
    else:
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    flag = StopFlag()
    signal.raise_signal(signal.SIGINT)
    assert flag.agreed() and flag.name == "SIGINT"
    os.close(writer)
    if broken != "read by nobody":
        os.close(reader)
