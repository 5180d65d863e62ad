#!/usr/bin/env bash
# One run on GPUs under SLURM, submitted again until it is finished:
#   bash scripts/slurm.sh [--dry-run] NODES GPUS CONFIG OUT [--dotted.key value ...]      GPUS: of each node
#   SBATCH_PARTITION=gpu SBATCH_TIMELIMIT=1-0 bash scripts/slurm.sh 4 8 configs/instructgpt_6b.yaml /lustre/me/paper-6b
# OUT is the run folder, on a file system that all nodes see.  instruct-jax must be on the PATH (the active environment goes along).
# One process per GPU: JAX finds SLURM by itself and gives each process the GPU of its local number, so more processes than one on a node
# are needed to use all GPUs, and each must see all of them.  --dry-run prints what would be submitted and calls nothing.
#SBATCH --job-name=instruct-jax
#SBATCH --output=instruct-jax-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

usage() {
    echo "$1" >&2
    echo "usage: bash scripts/slurm.sh [--dry-run] NODES GPUS CONFIG OUT [--dotted.key value ...]" >&2
    exit 2
}

dry=''
call() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}
session() {
    local config=$1 out=$2
    shift 2
    call srun --cpu-bind=none instruct-jax run --config "$config" "$@" --out "$out"
}

# In the job, on its first node.  SLURM sends SIGTERM to the processes 120 s before the time limit, and when the job is preempted.
job() {
    local out=$2 code
    for _ in 1 2 3; do # a process that dies takes all down; mostly the next try succeeds
        code=0
        session "$@" || code=$?
        [ ! -e "$out/report.html" ] || exit 0
        case $code in
        0 | 143) exec scontrol requeue "$SLURM_JOB_ID" ;; # stopped, not finished
        2) break ;;                                      # bad config or data: the same again
        esac
    done
    exit "$code"
}
if [ "${1:-}" = --job ]; then
    job "${@:2}"
fi

if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
[ $# -ge 4 ] || usage "NODES, GPUS, CONFIG and OUT are needed"
nodes=$1 gpus=$2 config=$3 out=$4
shift 4
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] || usage "NODES=$nodes and GPUS=$gpus must be whole numbers from 1"
[ -f "$config" ] || usage "$config: no such file"
[[ " $* " != *" --stages"* ]] || usage "--stages: a launched run is the whole chain, report.html tells that it is finished"
call sbatch --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" "$0" --job "$config" "$out" "$@"
if [ -n "$dry" ]; then
    grep '^#SBATCH' "$0"
    session "$config" "$out" "$@"
fi
