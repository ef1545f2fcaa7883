"""One machine by itself: what its limits, variables, packages, disk and GPUs say."""

import errno
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError, load_config
from hcmegatron.planner.machines import load_machine
from hcmegatron.planner.parameters import parameters_by_role
from hcmegatron.platform.ranks import RankInfo
from launch.doctor import devices, environment, limits, packages, run_sizes, storage
from launch.doctor.checks import run_checks
from launch.doctor.links import Link
from launch.doctor.machine_file import machine_text
from launch.doctor.run_sizes import RunSizes
from launch.doctor.slurm_nodes import expand, node_of_ranks
from launch.doctor.subject import Subject
from launch.doctor.system import System, run_program
from tests.ranks import ROOT

GIB = 1 << 30
NO_RUN = RunSizes()


def subject(local=1, gpus=0, sizes=NO_RUN, **system):
    ranks = RankInfo(0, local, 0, local, "127.0.0.1", 1, "a test")
    return Subject(System(**{"environment": {}, **system}), ranks, Path("runs"), sizes, gpus)


def said(findings):
    return [(one.level.name.lower(), one.name, one.value) for one in findings]


def of_size(free):
    return lambda path: os.statvfs_result(
        (4096, 4096, free // 4096, free // 4096, free // 4096, 0, 0, 0, 0, 255)
    )


@pytest.mark.parametrize(
    "free, ranks, level", [(64 << 20, 2, "fault"), (64 << 20, 1, "warning"), (8 * GIB, 8, "ok")]
)
def test_shared_memory(free, ranks, level):
    found = limits.shared_memory(subject(ranks, statvfs=of_size(free)))
    assert found.level.name.lower() == level and f"{free / GIB:.2f} GiB free" in found.value


def test_a_clock_that_nobody_keeps():
    assert limits.clock(5, 0).level.name == "NOTE"
    assert limits.clock(0, 250_000).value == "synchronised to within 250 ms"
    assert said([limits.clock(0, 1_500)]) == [("ok", "clock", "synchronised to within 1.5 ms")]
    state, error = limits.kernel_clock()
    assert 0 <= state <= 5 and error >= 0


def test_a_quota_below_the_cores(tmp_path):
    process = tmp_path / "self"
    process.write_text("0::/job/step\n")
    for group, quota in (("job", "50000 100000"), ("job/step", "max 100000")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "cpu.max").write_text(quota + "\n")
    assert limits.cores(tmp_path, process).value.endswith("the control group grants the time of 0.5")
    assert limits.cores(tmp_path / "none", process).level.name == "OK"


def test_open_files_by_the_number_of_ranks():
    assert limits.open_files(1).level.name == "OK"
    assert limits.open_files(10**6).value.endswith("1000000 ranks take 4000256")


def test_variables_that_do_harm():
    variables = {
        "NCCL_P2P_DISABLE": "1",
        "NCCL_IB_DISABLE": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "OMP_NUM_THREADS": str(4 * os.cpu_count()),
        "GLOO_SOCKET_IFNAME": "ib7",
        "NCCL_SOCKET_IFNAME": "^docker,lo",
    }
    found = said(environment.check(subject(2, gpus=2, environment=variables)))
    assert [(level, name) for level, name, _ in found] == [
        ("warning", "NCCL_P2P_DISABLE"),
        ("warning", "CUDA_DEVICE_MAX_CONNECTIONS"),
        ("warning", "OMP_NUM_THREADS"),
        ("fault", "GLOO_SOCKET_IFNAME"),
    ]
    (found,) = environment.check(
        subject(environment={"CUDA_DEVICE_MAX_CONNECTIONS": "64", "NCCL_SOCKET_IFNAME": "lo"})
    )
    assert found.level.name == "OK"


def test_mpi_without_its_library(monkeypatch):
    def broken(command):
        raise OSError("cannot load libmpi.so")

    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "4.1.2")
    assert packages.mpi(subject(run=broken)).value == "4.1.2 finds no MPI library (cannot load libmpi.so)"
    library = lambda command: "Open MPI v5.0.11, package: x\nmore\n\0"  # noqa: E731
    assert packages.mpi(subject(run=library)).value == "4.1.2, over Open MPI v5.0.11"


def test_a_program_that_fails_says_so():
    with pytest.raises(OSError, match="sh ended with status 3: broken"):
        run_program(["sh", "-c", "echo broken >&2; exit 3"])
    with pytest.raises(FileNotFoundError):
        run_program(["no-such-program"])


HEALTHY = (
    "0, NVIDIA H100 80GB HBM3, 570.86.15, 34, 1980, 1980, 0x0000000000000001, 0, 0, No, No, 16, 16\n"
    "1, NVIDIA H100 80GB HBM3, 570.86.15, 36, 345, 1980, 0x0000000000000004, 0, 2, No, No, 16, 16\n"
)
ILL = (
    "0, NVIDIA H100 80GB HBM3, 570.86.15, 34, 1980, 1980, 0x0000000000000000, 3, 0, No, No, 16, 16\n"
    "1, NVIDIA H100 80GB HBM3, 570.86.15, 91, 345, 1980, 0x0000000000000048, 0, 0, Yes, No, 8, 16\n"
    "2, NVIDIA GeForce RTX 4090, 570.86.15, 40, 210, 3105, 0x0000000000000000, [N/A], [N/A], [N/A], [N/A], 16, 16\n"
)


def test_gpus_by_what_nvidia_smi_prints():
    assert said(devices.check(subject(2, gpus=2, run=lambda command: HEALTHY))) == [
        ("ok", "GPU health", "2 x NVIDIA H100 80GB HBM3, driver 570.86.15, nothing amiss, at most 36 degrees")
    ]
    assert said(devices.check(subject(4, gpus=1, run=lambda command: ILL))) == [
        ("fault", "GPU 0 memory", "3 uncorrected errors"),
        ("warning", "GPU 1 memory", "rows wait to be remapped"),
        ("fault", "GPU 1 clock", "thermal slowdown by hardware, at 345 of 1980 MHz"),
        ("warning", "GPU 1 clock", "hardware slowdown, at 345 of 1980 MHz"),
        ("warning", "GPU 1 temperature", "91 degrees"),
        ("warning", "GPU 1 PCIe", "8 of 16 lanes"),
        ("fault", "GPUs", "3 for 4 ranks"),
    ]
    assert said(devices.check(subject())) == [("note", "GPU health", "not looked at: no GPU")]


def test_a_disk_that_is_as_it_should_be(tmp_path):
    probe = storage.open_probe(tmp_path / "not" / "yet")
    there = subject(sizes=replace(NO_RUN, checkpoint=GIB, kept=3))
    found = {one.name: one for one in storage.check(there, probe)}
    assert found["rename over a file"].level.name == found["flock"].level.name == "OK"
    assert "MB/s" in found["write speed"].value and "3 checkpoints of 1.00 GiB" in found["free space"].value
    assert storage.seen_from_here(str(probe.token)) == "seen"
    probe.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_not(tmp_path, monkeypatch):
    probe = storage.open_probe(tmp_path)
    full = subject(statvfs=of_size(GIB), sizes=replace(NO_RUN, checkpoint=GIB, kept=3))
    assert said([storage.space(full, tmp_path)]) == [
        ("fault", "free space", "1.00 GiB, for 3 checkpoints of 1.00 GiB")
    ]
    probe._lock.close()  # as where locks do not hold
    assert storage.locks(probe).value == "a second process gets the lock too"
    assert storage.seen_from_here(str(probe.token)) == "not locked"
    monkeypatch.setattr(storage, "SEEN_S", 0.1)
    assert storage.seen_from_here(str(tmp_path / "elsewhere" / "token")) == "not seen"

    def in_two_steps(source, target):
        Path(target).write_bytes(b"")
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(storage.os, "replace", in_two_steps)
    monkeypatch.setattr(storage, "REPLACED", 400)
    assert storage.replaces(tmp_path).level.name == "FAULT"


def fails(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_errors_of_the_file_system_are_no_health(tmp_path, monkeypatch):
    """A stale handle is a bad read, a read that never ends is none, and a full disk is said as such."""
    monkeypatch.setattr(storage, "READ_S", 0.2)
    with monkeypatch.context() as planted:
        planted.setattr(Path, "read_bytes", fails(errno.ESTALE))
        assert said([storage.replaces(tmp_path)])[0][::2] == (
            "fault",
            "a reader found it missing or in part (Stale file handle)",
        )
    with monkeypatch.context() as planted:
        planted.setattr(Path, "read_bytes", lambda path: time.sleep(2))
        assert storage.replaces(tmp_path).value == "no read of 64 KiB came to an end within 0 s"
    full = ("fault", "free space", "No space left on device")
    with monkeypatch.context() as planted:
        planted.setattr(storage.os, "fsync", fails(errno.ENOSPC))
        assert said([storage.speed(tmp_path)]) == [full]
        planted.setattr(storage.os, "fsync", fails(errno.EIO))
        assert said([storage.speed(tmp_path)]) == [("fault", "write speed", "Input/output error")]
        planted.setattr(storage.os, "replace", fails(errno.ENOSPC))
        assert said([storage.replaces(tmp_path)]) == [full]
        planted.setattr(storage.tempfile, "mkdtemp", fails(errno.EDQUOT))
        assert storage.open_probe(tmp_path).name == "free space"
    names = [one.name for one in storage.check(subject(), storage.open_probe(tmp_path))]
    assert names == ["rename over a file", "flock", "free space", "write speed"]


def test_a_directory_that_cannot_be_written():
    assert storage.open_probe(Path("/proc/sys/here")).value.startswith("cannot be written: /proc/sys: ")


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on():
    def broken(subject):
        raise RuntimeError("two\nlines")

    found = run_checks({"a": broken, "b": lambda subject: [limits.clock(0, 0)]}, subject())
    assert said(found) == [
        ("fault", "a", "could not be looked at: RuntimeError: two lines"),
        ("ok", "clock", "synchronised to within 0.0 ms"),
    ]
    assert found[0].nodes == (socket.gethostname(),)


def test_sizes_of_a_run():
    """2 micro-batch x 128 tokens x n = 4 x C = 128 x 4 bytes; experts' tokens, 2 of them each; weights with AdamW's."""
    config = load_config(ROOT / "configs/quickstart.yaml")
    tokens = config.training.micro_batch * config.data.sequence_length
    width = config.model.hidden_size
    found = run_sizes.of_run(config, "quickstart")
    assert found.hop == tokens * 4 * width * 4 and found.dispatch == tokens * config.moe.top_k * width * 4
    assert found.checkpoint == 1_614_424 * 12 and found.kept == config.checkpoint.keep_last + 1
    config.optimizer.name = "muon"  # which keeps one moment of matrices
    of_muon = sum(parameters_by_role(config, 256)["matrix"].values())
    assert run_sizes.of_run(config, "quickstart").checkpoint == found.checkpoint - 4 * of_muon
    config.connection.single_pass = True
    assert run_sizes.of_run(config, "quickstart").hop == found.hop + tokens * 4 * 4


def test_machines_of_ranks_by_slurm():
    assert expand("gpu[007-009,12],login") == ["gpu007", "gpu008", "gpu009", "gpu12", "login"]
    assert expand("r[1-2]n[1,3]") == ["r1n1", "r1n3", "r2n1", "r2n3"] and expand("") == []
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    assert node_of_ranks(slurm) == {0: "n1", 1: "n1", 2: "n2"}
    assert node_of_ranks({**slurm, "SLURM_DISTRIBUTION": "cyclic"}) == node_of_ranks({}) == {}


FIGURES = {
    "matmul_tflops": {0: 700.0, 1: 720.0},
    "copy_tbs": 2.9,
    "memory_gib": 79.1,
    "ranks_per_node": 8,
    "within": [(0, 1, Link(9.0, 320.0, 1 << 20))],
    "between": [],
}


def test_a_known_gpu_is_written_over_the_planners(tmp_path):
    """What was measured replaces the planner's figure: a message's rate is its link's times link_share."""
    path = tmp_path / "mine.yaml"
    path.write_text(machine_text({**FIGURES, "device": "NVIDIA H100 80GB HBM3"}))
    machine = load_machine(path)
    assert (machine.matmul_tflops, machine.copy_tbs, machine.nvlink_us) == (710.0, 2.9, 9.0)
    assert machine.nvlink_gbs * machine.link_share == pytest.approx(320)
    assert (machine.network_gbs, machine.peak_tflops) == (50, 989)


def test_an_unknown_device_is_written_whole(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(machine_text({**FIGURES, "device": "a box, 2 cores"}))
    machine = load_machine(path)
    assert (machine.nvlink_gbs, machine.network_gbs, machine.network_us, machine.link_share) == (
        320,
        320,
        9,
        1,
    )
    with pytest.raises(ConfigError, match="no device was measured"):
        machine_text({**FIGURES, "matmul_tflops": {}})
