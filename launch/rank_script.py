"""rank.sh: what launchers that carry no environment to other machines start as a rank; and containers without pyxis."""

from __future__ import annotations

from launch.job import FOLDER, Job, LaunchError
from launch.quoting import quote, quote_all
from launch.template import fill
from launch.words import module_lines, with_environment

SCRIPT = f"{FOLDER}/rank.sh"
# For torchrun.sh, which counts restarts, and has ranks end that torchrun starts after it was told to stop.
_OF_TORCHRUN = """echo "$TORCHELASTIC_RESTART_COUNT" >"$HCMEGATRON_STATUS_FILE.restart"
if [ -e "$HCMEGATRON_STATUS_FILE.asked" ]; then exit 0; fi"""


def rank_script(job: Job, launcher: str, contained: bool) -> dict[str, str]:
    """The script of one rank, by its name in the run directory.

    Args:
        launcher: its name; what runs the script, in words too.
        contained: it is in the job's container already.

    Raises:
        LaunchError: a value that a script or Apptainer cannot carry.
    """
    refuse_doctor(job)
    program = with_environment(job, job.command)
    outside = not contained or job.container is None
    values = {
        "launcher": launcher,
        "modules": module_lines(job) if outside else "",
        "setup": "\n".join(job.setup) if outside else "",
        "gpus": gpus(job),
        "restart": _OF_TORCHRUN if launcher == "torchrun" else "",
        "work": quote(str(job.work_dir)),
        "program": quote_all(program if contained else [*container(job), *program]),
    }
    return {SCRIPT: fill("rank.sh", values)}


def container(job: Job) -> list[str]:
    """The words before a command that run it in the job's container by Apptainer; [] where it has none.

    Raises:
        LaunchError: a mount that Apptainer cannot be told of.
    """
    if job.container is None:
        return []
    mounts = [*(f"{path}:{path}" for path in dict.fromkeys((job.run_dir, job.work_dir))), *job.mounts]
    if odd := [mount for mount in mounts if "," in mount or mount.count(":") not in (1, 2)]:
        raise LaunchError(
            f"{odd[0]!r} cannot be mounted: Apptainer takes from:to, without commas and more colons"
        )
    gpus = ["--nv"] if job.gpus_per_rank else []
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", *gpus, *binds, "--pwd", str(job.work_dir), job.container]


def refuse_doctor(job: Job) -> None:
    """LaunchError where a job is to look at its machines first, which only SLURM's script does."""
    if job.doctor:
        raise LaunchError(
            "doctor = true: only slurm looks at its machines first; run hcmegatron doctor there"
        )


def gpus(job: Job) -> str:
    """Lines of shell after which a rank sees the GPUs that it is to see.

    Raises:
        LaunchError: several of a machine's, which nobody shares out.
    """
    if job.gpus_per_rank == 0:
        return "export CUDA_VISIBLE_DEVICES="
    if job.gpu_visibility == "all":
        return ""
    if job.gpus_per_rank > 1:
        raise LaunchError(
            f"gpus_per_rank = {job.gpus_per_rank} with gpu_visibility = one: only slurm shares them out; use all"
        )
    return fill("own_gpu.sh", {}).rstrip()
