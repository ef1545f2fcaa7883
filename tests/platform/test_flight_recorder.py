"""What NCCL has recorded is written where it is in use, and nothing anywhere else."""

from types import SimpleNamespace

import pytest

from hcmegatron.platform import flight_recorder


@pytest.mark.parametrize(
    "started, backend, files",
    [(True, "nccl", {"nccl-rank-3": b"trace"}), (True, "gloo", {}), (False, None, {})],
)
def test_dump(started, backend, files, tmp_path, monkeypatch):
    dist = SimpleNamespace(is_initialized=lambda: started, get_backend=lambda: backend)
    monkeypatch.setattr(flight_recorder, "dist", dist)
    recorded = SimpleNamespace(_dump_nccl_trace=lambda: b"trace")
    monkeypatch.setattr(flight_recorder, "_distributed_c10d", recorded)
    flight_recorder.dump(tmp_path, 3)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
