#!/usr/bin/env bash
# Four nodes of eight GPUs. Submit it again, or let it requeue itself: the run goes on from its last checkpoint.
#SBATCH --job-name=ser
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# five minutes before the time is up every task gets SIGUSR1: the step is finished, a checkpoint written, status 138
srun --kill-on-bad-exit=1 equimid pretrain /shared/imagenet/train --recipe ser-small --out /shared/runs/ser-small \
    train.batch_size=4096 runtime.workers=10
status=$?
if [ $status -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $status
