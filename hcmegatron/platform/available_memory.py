"""How much memory there is for this process: the machine's, or what its control group allows."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_bytes(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that can still be had, swap not counted.

    In a container or a SLURM job the kernel ends what grows beyond the group's limit, not the machine's.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(root, process)])


def _left_in_groups(root: Path, process: Path) -> list[int]:
    """Of every control group (version 2) that this process is in and that has a limit."""
    try:
        paths = [line.split(":", 2)[2] for line in process.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return []
    left = []
    for path in paths:
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit = int((group / "memory.max").read_text())
                used = int((group / "memory.current").read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(limit - used + int(stat.get("inactive_file", 0)))  # the cache is given up first
            except (OSError, ValueError):  # no such group here, or "max": no limit
                continue
    return left
