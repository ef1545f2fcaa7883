#!/bin/bash
#SBATCH --array=0-1
#SBATCH --output=launch/row-%a.log
#SBATCH --job-name=runs
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=60
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --requeue
#
# Runs side by side, a row each. Written by `hcmegatron launch slurm --array`.
# Every row is the batch script of its own run directory, which would run by itself too.

runs=(
    /shared/runs/one
    '/shared/runs/two words'
)
run=${runs[$SLURM_ARRAY_TASK_ID]}
exec bash "$run/launch/job.sh" >>"$run/launch/job.log" 2>&1
