#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch torchrun`; run by job.sh.

ulimit -n 65536
export CUDA_VISIBLE_DEVICES=
echo "$TORCHELASTIC_RESTART_COUNT" >"$HCMEGATRON_STATUS_FILE.restart"
if [ -e "$HCMEGATRON_STATUS_FILE.asked" ]; then exit 0; fi
cd /home/me/project || exit 2
exec python -m hcmegatron train /shared/runs/mine/launch/config.yaml
