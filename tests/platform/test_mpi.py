"""mpirun on several machines, with its own variables alone: where rank 0 is; and two MPIs that do not fit."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.platform import mpi, mpi_meeting
from hcmegatron.platform.ranks import PORTS
from tests.platform.clean import CLEAN, mpirun
from tests.platform.two_machines import ADDRESSES, LINKS, missing, two_machines

PRINT = (
    "import dataclasses, json, os; from hcmegatron.platform.ranks import discover_ranks; "
    "os.write(1, (json.dumps(dataclasses.asdict(discover_ranks(os.environ))) + chr(10)).encode())"
)


def test_two_machines_whose_names_mean_nothing_find_rank_0(tmp_path):
    if why := missing():
        pytest.skip(why)
    with two_machines(tmp_path) as machines:
        launch = mpirun("--prtemca", "plm_ssh_agent", str(machines.ssh), "-H", "n0:2,n1:2", "-np", "4")
        done = subprocess.run(
            machines.on(0, *launch, sys.executable, "-c", PRINT),
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=60,
        )
    found = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda place: place["rank"])
    assert [place["rank"] for place in found] == [0, 1, 2, 3], done.stderr
    assert [place["local_rank"] for place in found] == [0, 1, 0, 1]
    assert {place["master_addr"] for place in found} == {ADDRESSES[0]}
    assert len({place["master_port"] for place in found}) == 1 and found[0]["master_port"] in PORTS
    assert [place["interface"] for place in found] == [LINKS[0], LINKS[0], LINKS[1], LINKS[1]]


def test_an_mpi_that_is_not_the_launchers_is_one_line():
    """Variables of hydra, and an mpi4py that was built for Open MPI: each rank is alone for it."""
    mpirun()
    with pytest.raises(ConfigError) as caught:
        mpi.meet("PMI", 4, 0, PORTS, CLEAN | {"PMI_RANK": "0", "PMI_SIZE": "4"})
    said = str(caught.value)
    assert "PMI started 4 ranks, but mpi4py sees 1 by Open MPI v" in said and "\n" not in said
    assert "MASTER_ADDR and MASTER_PORT by hand" in said


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "import sys; print('Abort(1): no PMI here', file=sys.stderr); sys.exit(16)",
            "(Abort(1): no PMI here)",
        ),
        ("import sys; print('=====', file=sys.stderr); sys.exit(16)", "(status 16)"),
        ("import time; time.sleep(60)", "did not meet over MPI within 0 s"),
        (
            'print(\'{"size": 4, "library": "MPI", "port": 20001, "offered": "10.0.0.1"}\')',
            "rank 0 offered 10.0.0.1 at port 20001, and no address is reached",
        ),
    ],
)
def test_what_ends_the_meeting_is_one_line(program, words, tmp_path, monkeypatch):
    waited = []
    (tmp_path / "mpi_meeting.py").write_text(program)
    monkeypatch.setattr(mpi, "__file__", str(tmp_path / "mpi.py"))
    monkeypatch.setattr(mpi, "_installed", lambda: True)
    monkeypatch.setattr(mpi, "time", SimpleNamespace(sleep=waited.append))
    if "sleep" in program:
        monkeypatch.setattr(mpi, "LIMIT_S", 0.3)
    for local_rank in (0, 1):
        with pytest.raises(ConfigError) as caught:
            mpi.meet("Open MPI", 4, local_rank, PORTS, CLEAN)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert waited == [mpi.PATIENCE_S]  # the first of a machine says it


def test_who_does_not_know_the_secret_is_not_rank_0():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not mpi_meeting._knock("127.0.0.1", 1, b"secret")  # nobody listens
        client = subprocess.Popen(
            [sys.executable, "-c", f"import socket; s = socket.create_connection(('127.0.0.1', {port}))"]
        )
        listener.accept()[0].close()
        client.wait(10)
    listener = mpi_meeting._listen(PORTS.start, PORTS.stop - 1)
    port = listener.getsockname()[1]
    with listener:
        threading = mpi_meeting.threading.Thread(
            target=mpi_meeting._answer, args=(listener, b"secret"), daemon=True
        )
        threading.start()
        assert mpi_meeting._knock("127.0.0.1", port, b"secret")
        assert not mpi_meeting._knock("127.0.0.1", port, b"others")
        listener.shutdown(socket.SHUT_RDWR)
        threading.join(10)
        assert not threading.is_alive()


def test_a_version_in_brief():
    long = "Open MPI v5.0.11, package: Open MPI user@host Distribution, ident: 5.0.11\0"
    assert mpi_meeting._in_brief(long) == "Open MPI v5.0.11"
    assert mpi_meeting._in_brief("MPICH Version:      5.0.2\nMPICH Release date: x") == "MPICH Version: 5.0.2"
