"""Jobs whose scripts are kept in expected/."""

from dataclasses import replace
from pathlib import Path

from launch import array, launchers
from launch.job import Job

EXPECTED = Path(__file__).parent / "expected"

PROGRAM = ("python", "-m", "hcmegatron", "train", "/shared/runs/mine/launch/config.yaml")
RUN, WORK = Path("/shared/runs/mine"), Path("/home/me/project")

JOBS = {
    "slurm-cpu": ("slurm", Job(PROGRAM, RUN, WORK, nodes=2, gpus_per_rank=0, time_limit=60)),
    "slurm-everything": (
        "slurm",
        Job(
            PROGRAM,
            RUN,
            WORK,
            name="mhc-27b",
            nodes=8,
            ranks_per_node=8,
            cpus_per_rank=12,
            memory_per_rank_gb=200,
            time_limit=240,
            account="me",
            partition="gpu-a,gpu-b",
            qos="long",
            constraint="nvlink&ib",
            exclude=("gpu[007-009,12]", "odd1"),
            reservation="week",
            spare_nodes=2,
            environment={"NCCL_DEBUG": "WARN", "NAME": "it's $HOME"},
            modules=("cuda/12.9", "python/3.12"),
            setup=("ulimit -n 65536",),
            signal_seconds=180,
            gpu_visibility="one",
            doctor=True,
        ),
    ),
    "slurm-pyxis-chain": (
        "slurm",
        Job(
            PROGRAM,
            RUN,
            WORK,
            nodes=4,
            ranks_per_node=8,
            container="/images/hcmegatron.sqsh",
            mounts=("/data:/data:ro",),
            environment={"MASTER_ADDR": "gpu1-ib"},
            restarts=0,
            chain=5,
        ),
    ),
    "local": ("local", Job(PROGRAM, RUN, WORK, ranks_per_node=2, environment={"OMP_NUM_THREADS": "4"})),
}


def scripts():
    """Their texts by the names of files."""
    found = {
        f"{name}.sh": launchers.find(launcher).render(job)["launch/job.sh"]
        for name, (launcher, job) in JOBS.items()
    }
    rows = [replace(JOBS["slurm-cpu"][1], run_dir=RUN.parent / name) for name in ("one", "two words")]
    (found["slurm-array.sh"],) = array.files(rows).values()
    return found
