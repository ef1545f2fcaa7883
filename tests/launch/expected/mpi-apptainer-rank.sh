#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch mpi`; run by job.sh.

cd /home/me/project || exit 2
exec apptainer exec --nv --bind /shared/runs/mine:/shared/runs/mine --bind /home/me/project:/home/me/project --bind /data:/data:ro --pwd /home/me/project /images/hcmegatron.sif python -m hcmegatron train /shared/runs/mine/launch/config.yaml
