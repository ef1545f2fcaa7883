"""Jobs of mpirun and torchrun whose scripts are kept in expected/. To write them: python -m tests.launch.site_jobs"""

from pathlib import Path

from launch import launchers
from launch.job import Job

EXPECTED = Path(__file__).parent / "expected"
PROGRAM = ("python", "-m", "hcmegatron", "train", "/shared/runs/mine/launch/config.yaml")
RUN, WORK = Path("/shared/runs/mine"), Path("/home/me/project")

JOBS = {
    "mpi": Job(
        PROGRAM,
        RUN,
        WORK,
        nodes=2,
        ranks_per_node=8,
        cpus_per_rank=12,
        exclude=("gpu7",),
        environment={"NCCL_DEBUG": "WARN", "NAME": "it's here"},
        modules=("openmpi/5.0",),
        gpu_visibility="one",
    ),
    "mpi-apptainer": Job(
        PROGRAM,
        RUN,
        WORK,
        nodes=4,
        ranks_per_node=8,
        container="/images/hcmegatron.sif",
        mounts=("/data:/data:ro",),
        restarts=0,
    ),
    "torchrun": Job(
        PROGRAM,
        RUN,
        WORK,
        nodes=2,
        spare_nodes=1,
        ranks_per_node=4,
        gpus_per_rank=0,
        setup=("ulimit -n 65536",),
    ),
    "torchrun-apptainer": Job(
        PROGRAM,
        RUN,
        WORK,
        ranks_per_node=8,
        container="/images/hcmegatron.sif",
        environment={"NCCL_DEBUG": "WARN"},
        gpu_visibility="one",
    ),
}


def scripts():
    """Their texts by the names of files: NAME.sh, and NAME-rank.sh of a rank."""
    found = {}
    for name, job in JOBS.items():
        rendered = launchers.find(name.partition("-")[0]).render(job)
        found |= {f"{name}.sh": rendered["launch/job.sh"], f"{name}-rank.sh": rendered["launch/rank.sh"]}
    return found


if __name__ == "__main__":
    EXPECTED.mkdir(exist_ok=True)
    for name, text in scripts().items():
        (EXPECTED / name).write_text(text)
