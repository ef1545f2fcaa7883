#!/bin/bash
# 2 ranks on this machine
# Written by `hcmegatron launch local`. The command starts the ranks, and starts them again where that was asked for.

cd /home/me/project || exit 2
env OMP_NUM_THREADS=4 python -m hcmegatron train /shared/runs/mine/launch/config.yaml --restarts=3
status=$?
case $status in
    0) words=finished ;;
    75) words="stopped by a signal" ;;
    *) words="failed, see hcmegatron logs --errors" ;;
esac
printf '%d %s\n' "$status" "$words" >/shared/runs/mine/launch/ended
exit "$status"
