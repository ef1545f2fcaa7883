"""The server: bounded work, this machine alone, a port that is taken."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.report import serve
from hcmegatron.report.inputs.run import directories
from tests.ranks import ROOT
from tests.report.run_directories import make_run, train_line


@contextmanager
def served(*runs):
    """A server in a thread; asks it: path and headers to status, headers, body."""

    def ask(path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", running.server_port, timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    with serve.server(directories(list(runs)), False, 0, "/* plotly */") as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield ask
        finally:
            running.shutdown()
            thread.join()


def test_the_page_its_content_and_what_is_not_there(tmp_path):
    with served(make_run(tmp_path / "run", steps=30)) as ask:
        status, _, text = ask("/")
        assert status == 200 and "Run run" in text and "data-live" in text and "connect-src 'self'" in text
        status, _, text = ask("/content.json?since=")
        found = json.loads(text)
        assert status == 200 and found["figures"].keys() >= {"loss", "memory"} and "step 30" in found["body"]
        assert ask(f"/content.json?since={found['stamp']}")[0] == 204
        assert ask("/../etc/passwd")[0] == ask("/report.html")[0] == 404
        assert ask("/", Host="evil.example:80")[0] == 403
        assert ask("/", Host="localhost:9999")[0] == 200  # through a tunnel


def test_work_is_bounded_however_many_ask(tmp_path):
    """Looked at once in EVERY_S, and made anew only where something has changed."""
    run, now = make_run(tmp_path / "run", steps=30), [0.0]
    latest = serve.Latest(directories([run]), False, clock=lambda: now[0])
    assert {latest.content()[0] for _ in range(50)} == {"1"}
    now[0] += serve.EVERY_S
    assert latest.content()[0] == "1"
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(train_line(31, 1.0)) + "\n")
    assert latest.content()[0] == "1"
    now[0] += serve.EVERY_S
    stamp, found = latest.content()
    assert stamp == "2" and "step 31" in found.body and latest.made == 2
    (run / "diagnostics").mkdir()  # arrays come before their line
    now[0] += serve.EVERY_S
    assert latest.content()[0] == "3"


def test_a_port_that_is_taken_is_one_line(tmp_path):
    found = directories([make_run(tmp_path / "run", steps=3)])
    with (
        serve.server(found, False, 0, "") as running,
        pytest.raises(
            ConfigError, match=rf"^--port = {running.server_port} is in use; choose another, or 0 "
        ),
    ):
        serve.server(found, False, running.server_port, "")


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    command = [sys.executable, "-m", "hcmegatron", "report", str(run), "--serve", "--port=0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and line.endswith("(Ctrl-C ends it)\n")
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "ended\n" and process.returncode == 0
    finally:
        process.kill()
    assert not (run / "report.html").exists()
