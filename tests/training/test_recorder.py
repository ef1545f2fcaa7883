"""What is written survives its places: garbage, a full disk, a reader that has gone, numbers that are not finite."""

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest

from hcmegatron.config import Config, ConfigError
from hcmegatron.training import recorder
from hcmegatron.training.log import Log
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Rewind, Step
from hcmegatron.training.recorder import Recorder, drop_later_metrics, metrics_line
from hcmegatron.training.sink import Sink
from hcmegatron.training.tensorboard import TensorBoard


def run_in(directory, report=None):
    """What an observer that writes needs of a run."""
    log = SimpleNamespace(report=report, say=lambda *lines: None, step=lambda *line: None)
    return SimpleNamespace(directory=directory, log=log, config=Config(), position=Progress(0, 0))


def test_garbage_in_metrics_costs_no_valid_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "kind": "train", "loss": 1.5}).encode() for step in (1, 2, 3, 4)]
    garbage = [
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"step": "2"}',
        b'{"loss": 1}',
        b"[" * 100_000,
        b"",
        b'{"step": 3, "ki',
    ]
    path.write_bytes(
        b"\n".join([good[0], *garbage[:4], good[1], *garbage[4:7], good[2], good[3], garbage[7]])
    )
    assert drop_later_metrics(path, 4) == 8
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:3])
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert drop_later_metrics(tmp_path / "none.jsonl", 1) == 0


def test_numbers_that_json_does_not_have():
    line = metrics_line({"step": 1, "loss": float("nan"), "grad_norm": float("-inf"), "lr": 0.5})
    read = json.loads(line, parse_constant=pytest.fail)
    assert read == {
        **{"step": 1, "loss": None, "grad_norm": None, "lr": 0.5},
        "nonfinite": {"loss": "nan", "grad_norm": "-inf"},
    }
    assert metrics_line({"step": 1, "loss": 2.0}) == '{"step": 1, "loss": 2.0}\n'


def test_a_reader_that_has_gone_is_reported_once():
    reader, writer = os.pipe()
    os.close(reader)
    reports = []
    sink = Sink("standard output", writer, reports.append)
    for _ in range(3):
        sink.write("line\n")
    sink.close()
    assert reports == [
        "standard output takes no lines (Broken pipe): training goes on, nothing more is written there"
    ]


def test_a_full_disk_is_reported_once_and_nothing_is_lost_when_there_is_room_again():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    reports = []
    sink = Sink("metrics.jsonl", writer, reports.append)
    lines = [f"line {number} {'x' * 1000}\n" for number in range(200)]  # a pipe takes 64 KiB
    for line in lines:
        sink.write(line)
    assert len(reports) == 1 and "what is missing follows when it does" in reports[0]
    found = b""
    os.set_blocking(reader, False)
    while len(found) < sum(map(len, lines)):
        try:
            found += os.read(reader, 2**20)
        except BlockingIOError:
            sink.write("")
    assert found.decode() == "".join(lines)


def test_a_device_without_room_at_all():
    reports = []
    sink = Sink.append("/dev/full", reports.append)
    sink.write("x")
    sink.close()
    assert len(reports) == 1 and "No space left on device" in reports[0]


def test_what_is_closed_twice_leaves_others_alone(tmp_path):
    sink = Sink.append(tmp_path / "a", pytest.fail)
    number = sink.descriptor
    sink.close()
    with (tmp_path / "b").open("w") as other:
        assert other.fileno() == number  # which the system gives again
        sink.close()
        sink.write("x")
        assert os.fstat(number)
    assert not (tmp_path / "a").read_text()


def test_tensorboard_that_cannot_write_is_left_out(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    reports = []
    events = TensorBoard(run_in(tmp_path, reports.append))
    events.add("loss", 1.0, 1)
    events.on_end(None)
    assert len(reports) == 1 and "training goes on without TensorBoard" in reports[0]


def test_a_tensorboard_that_fails_later_is_left_out(tmp_path, capfd):
    reports, usual = [], threading.excepthook
    events = TensorBoard(run_in(tmp_path, reports.append))
    written = events._writer.file_writer.event_writer._async_writer._writer._writer
    written.write = lambda data: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    for step in range(1000):
        if reports:
            break
        events.add("loss", 1.0, step)
        time.sleep(0.01)  # its thread fails some time later
    events.on_end(None)
    assert len(reports) == 1 and "No space left on device" in reports[0]
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is usual


def test_a_terminal_of_a_launcher_gets_plain_lines(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Sink, "isatty", lambda self: True)
    with Log(tmp_path, 5, 1, watched=False) as plain:
        plain.step(1, "step 1/5", "loss 1", show=True)
    assert capfd.readouterr().out == "step 1/5\n"
    with Log(tmp_path, 5, 1, watched=True) as bar:
        bar.step(1, "step 1/5", "loss 1", show=True)
    assert "training" in capfd.readouterr().out
    assert (tmp_path / "train.log").read_text() == "step 1/5\n" * 2


def test_a_run_directory_without_room_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')

    def full(path, first_step):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(recorder, "drop_later_metrics", full)
    with pytest.raises(
        ConfigError, match=r"metrics.jsonl cannot be written: No space left on device; make room"
    ):
        Recorder(run_in(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_disk_without_room_at_a_rewind_costs_no_line_and_not_the_run(tmp_path, monkeypatch):
    def full(path, first_step):
        raise OSError(28, "No space left on device", str(path))

    reports, usual = [], recorder.drop_later_metrics
    observer = Recorder(run_in(tmp_path, reports.append))
    for drop, loss, before in ((full, 1.0, [1.0, 1.0]), (usual, 2.0, [])):
        for number in (1, 2):
            step = Step(number, SimpleNamespace(loss=loss), 1e-3, 1.0)
            step.add("loss", loss)
            observer.on_step(step)
        monkeypatch.setattr(recorder, "drop_later_metrics", drop)
        observer.on_rewind(Rewind(step, Progress(0, 0), range(1, 3)))
        *lines, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        assert (last["kind"], last["loss"]) == ("rewind", loss)
        assert [line["loss"] for line in lines if line["kind"] == "train"] == before
    observer.on_end(None)
    (said,) = reports
    assert said.startswith("metrics.jsonl has repeated steps twice, and training goes on: ")
    assert "No space left on device" in said
