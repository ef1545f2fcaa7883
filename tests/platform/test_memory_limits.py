"""The memory that can be had is the least of what the machine and the control groups leave."""

from hcmegatron.platform.available_memory import available_bytes

GIB = 2**30


def group(folder, limit, used=GIB, cache=0):
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_the_tightest_group_counts(tmp_path):
    root, process = tmp_path / "cgroup", tmp_path / "self"
    machine = available_bytes(root, process)
    assert machine > 0  # no control groups here
    process.write_text("0::/job/step\n")
    group(root / "job", GIB + 3000)
    group(root / "job/step", "max")
    assert available_bytes(root, process) == 3000
    (root / "job/step/memory.max").write_text(f"{GIB + 1000}\n")
    assert available_bytes(root, process) == 1000
    (root / "job/step/memory.stat").write_text("inactive_file 500\n")
    assert available_bytes(root, process) == 1500
