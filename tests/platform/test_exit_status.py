"""What the command's exit status says, from ranks that end in every way."""

import multiprocessing
import os
import signal

import pytest

from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import DIVERGED, STOPPED
from hcmegatron.platform.local_launch import launch_ranks


class OffTheRails(Ended):
    status = DIVERGED


def worker(place):
    how = os.environ["HOW_IT_ENDS"]
    if how == "diverged":
        raise OffTheRails("5 non-finite steps")
    if how == "lost" and place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"stopped": STOPPED, "finished": 0}.get(how, 0)


def launched(how, sender):
    os.environ["HOW_IT_ENDS"] = how
    try:
        sender.send(launch_ranks(worker, 2))
    except Ended as error:
        sender.send((str(error), error.status))


@pytest.mark.parametrize(
    "how, status",
    [("finished", 0), ("stopped", STOPPED), ("lost", 137), ("diverged", ("5 non-finite steps", DIVERGED))],
)
def test_the_status_of_two_ranks(how, status):
    """In a process of its own, whose signals the launch may handle."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=launched, args=(how, sender))
    process.start()
    assert receiver.poll(30)
    assert receiver.recv() == status
    process.join()
