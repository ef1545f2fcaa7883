"""Programs that stand for mpirun and torchrun: they write down what they are told, and end as a test says."""

import subprocess
from dataclasses import replace

from launch import launchers
from launch.job import Job

VERSIONS = {
    "openmpi": "mpirun (Open MPI) 5.0.11\n\nReport bugs to",
    "mpich": "HYDRA build details:\n    Version: 5.0.2",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.19",
}
# Says which it is; writes down what it was told; is one rank, with an environment of a local rank; ends as it is told.
STUB = """#!/bin/bash
if [ "$1" = --version ]; then cat {folder}/version; exit; fi
printf '%s\\n' "${{0##*/}}" "$@" >>{folder}/told
echo >>{folder}/told
if [ -e {folder}/wait ]; then
    trap 'echo heard >>{folder}/told; exit 0' USR1
    touch {folder}/waiting
    while :; do sleep 0.05; done
fi
status=$(head -n 1 {folder}/statuses); sed -i 1d {folder}/statuses
if [ "${{status%% *}}" != kill ]; then
    export LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 TORCHELASTIC_RESTART_COUNT=${{status#* }}
    "${{@: -2}}" || exit
fi
exit "${{status%% *}}"
"""


class Stub:
    """A folder with a job's scripts, and an mpirun and torchrun that only write down."""

    def __init__(self, folder, launcher, **changes):
        self.folder = folder
        for name in ("mpirun", "mpiexec.hydra", "torchrun"):
            (folder / name).write_text(STUB.format(folder=folder))
            (folder / name).chmod(0o755)
        self.put("version", VERSIONS["openmpi"])
        self.put("statuses", "0 0\n")
        job = Job(("true",), folder, folder, gpus_per_rank=0, setup=(f"export PATH={folder}:$PATH",))
        self.job = replace(job, **changes)
        for name, text in launchers.find(launcher).render(self.job).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, errors="surrogateescape")

    def put(self, name, text):
        (self.folder / name).write_text(text)

    def start(self, *words):
        return subprocess.Popen(
            ["bash", str(self.folder / "launch/job.sh"), *words], stdout=subprocess.PIPE, text=True
        )

    def run(self, *words):
        """(status, what was said)"""
        process = self.start(*words)
        said = process.communicate(timeout=30)[0]
        return process.returncode, said

    @property
    def told(self):
        """The arguments of each call."""
        path = self.folder / "told"
        return (
            [call.split("\n") for call in path.read_text().rstrip("\n").split("\n\n")]
            if path.exists()
            else []
        )

    @property
    def ended(self):
        return (self.folder / "launch/ended").read_text()
