#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch mpi`; run by job.sh.

# shellcheck disable=SC1091
type module >/dev/null 2>&1 || source /etc/profile
module load openmpi/5.0
# Of the machine's GPUs this rank sees its own alone.
number=${LOCAL_RANK:-${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PMI_LOCAL_RANK:?is not set: no launcher}}}}
IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES:-}"
export CUDA_VISIBLE_DEVICES=${visible[number]-$number}
cd /home/me/project || exit 2
exec env NCCL_DEBUG=WARN 'NAME=it'"'"'s here' python -m hcmegatron train /shared/runs/mine/launch/config.yaml
