"""What hydra and the script around torchrun are told when a rank ends."""

import os
import socket
import threading

import pytest

from hcmegatron.platform.launcher_end import tell_end, tell_stopped

HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, b"cmd=finalize\n"), (2, b"cmd=abort exitcode=2\n"), (130, b"cmd=abort exitcode=130\n")],
)
def test_hydra_is_told_in_its_protocol(status, said):
    ours, theirs = socket.socketpair()
    heard = []

    def answer():
        heard.append(theirs.recv(100))
        theirs.sendall(b"cmd=finalize_ack rc=0\n")

    with ours, theirs:
        thread = threading.Thread(target=answer)
        thread.start()
        assert tell_end(status, HYDRA | {"PMI_FD": str(ours.fileno())}) == status
        thread.join(10)
    assert heard == [said]


def test_what_is_not_hydras_is_left_alone(tmp_path):
    with open(tmp_path / "file", "wb", buffering=0) as file:
        for fd in (str(file.fileno()), "x", "", "99999", str(1 << 70)):
            assert tell_end(1, HYDRA | {"PMI_FD": fd}) == 1
    assert (tmp_path / "file").read_bytes() == b""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        fd = {"PMI_FD": str(ours.fileno())}
        assert tell_end(1, {"PMI_RANK": "1", **fd}) == 1  # SLURM's PMI-2
        assert (
            tell_end(1, HYDRA | fd | {"TORCHELASTIC_RUN_ID": "x"}) == 1
        )  # its torchrun's ranks are not hydra's
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize(("status", "left"), [(2, 0), (3, 0), (4, 0), (0, 0), (1, 1), (124, 124), (137, 137)])
def test_torchrun_is_kept_from_starting_again_what_would_only_come_again(status, left, tmp_path):
    file = tmp_path / "status"
    file.write_text("")
    environ = {"TORCHELASTIC_RUN_ID": "x", "HCMEGATRON_STATUS_FILE": str(file)}
    assert tell_end(status, environ) == left
    assert file.read_text() == (f"{status}\n" if status in (2, 3, 4) else "")
    assert tell_end(status, {"TORCHELASTIC_RUN_ID": "x"}) == status


def test_a_status_that_cannot_be_left_is_not_lost(tmp_path, capsys):
    environ = {"TORCHELASTIC_RUN_ID": "x", "HCMEGATRON_STATUS_FILE": os.fspath(tmp_path)}
    assert tell_end(2, environ) == 2
    assert tell_stopped({"HCMEGATRON_STATUS_FILE": os.fspath(tmp_path)}) == 75
    assert "HCMEGATRON_STATUS_FILE cannot be written: Is a directory" in capsys.readouterr().err


def test_a_jobs_script_is_told_of_a_stop_by_its_status(tmp_path):
    file = tmp_path / "status"
    assert tell_stopped({}) == 0
    environ = {"HCMEGATRON_STATUS_FILE": str(file)}
    assert tell_stopped(environ | {"TORCHELASTIC_RUN_ID": "x"}) == 0 and not file.exists()
    assert tell_stopped(environ) == 0 and file.read_text() == "75\n"
