#!/bin/bash
# A campaign as a Slurm array: sbatch --export=ALL,CAMPAIGN=campaign.toml,RESULTS=/shared/results slurm.sh
# When all tasks have ended: baton campaign merge /shared/results/*
#SBATCH --job-name=baton
#SBATCH --array=1-8
#SBATCH --cpus-per-task=4
set -euo pipefail
baton campaign "$CAMPAIGN" \
    --partition "slice:$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --jobs "$SLURM_CPUS_PER_TASK" \
    --out "$RESULTS/$SLURM_ARRAY_TASK_ID"
