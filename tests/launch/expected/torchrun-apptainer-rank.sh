#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch torchrun`; run by job.sh.

# Of the machine's GPUs this rank sees its own alone.
number=${LOCAL_RANK:-${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PMI_LOCAL_RANK:?is not set: no launcher}}}}
IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES:-}"
export CUDA_VISIBLE_DEVICES=${visible[number]-$number}
echo "$TORCHELASTIC_RESTART_COUNT" >"$HCMEGATRON_STATUS_FILE.restart"
if [ -e "$HCMEGATRON_STATUS_FILE.asked" ]; then exit 0; fi
cd /home/me/project || exit 2
exec env NCCL_DEBUG=WARN python -m hcmegatron train /shared/runs/mine/launch/config.yaml
