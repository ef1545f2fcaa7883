#!/bin/bash
{{directives}}
#
# Runs side by side, a row each. Written by `hcmegatron launch slurm --array`.
# Every row is the batch script of its own run directory, which would run by itself too.

runs=(
{{rows}}
)
run=${runs[$SLURM_ARRAY_TASK_ID]}
exec bash "$run/launch/job.sh" >>"$run/launch/job.log" 2>&1
