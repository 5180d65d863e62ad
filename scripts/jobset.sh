#!/usr/bin/env bash
# One run on Kubernetes as a JobSet, restarted until it is finished:
#   bash scripts/jobset.sh [--dry-run] NAME IMAGE CLAIM DEVICES CONFIG [--dotted.key value ...]
#   bash scripts/jobset.sh paper-6b repo/instruct-jax:tpu runs tpu-v5p-slice:4x4x2 configs/instructgpt_6b.yaml
#   bash scripts/jobset.sh paper-6b repo/instruct-jax:cuda runs gpu:4x8 configs/instructgpt_6b.yaml --ppo.kl_coef 0.05
# IMAGE has this project installed, and CONFIG as seen from its working folder.  CLAIM is a ReadWriteMany volume claim (Filestore, Lustre,
# NFS), mounted at /runs; the run folder is /runs/NAME.  DEVICES is a GKE accelerator and its topology, in nodes of 4 chips, or gpu: and
# nodes x GPUs of a node.  --dry-run prints the manifest (scripts/jobset.yaml, filled in) and calls nothing.
# TPU processes find each other by what GKE tells them.  GPU processes, one per node, are told: finding out by themselves takes JAX the
# `kubernetes` package and a service account that may read pods, jobs and services.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "$1" >&2
    echo "usage: bash scripts/jobset.sh [--dry-run] NAME IMAGE CLAIM DEVICES CONFIG [--dotted.key value ...]" >&2
    exit 2
}

apply=(kubectl apply --filename=-)
if [ "${1:-}" = --dry-run ]; then
    apply=(cat)
    shift
fi
[ $# -ge 5 ] || usage "NAME, IMAGE, CLAIM, DEVICES and CONFIG are needed"
name=$1 image=$2 claim=$3 devices=$4 config=$5
shift 5
[[ $name =~ ^[a-z][a-z0-9-]{0,49}$ && $name != *- ]] || usage "NAME=$name must be a host name of at most 50 characters: a-z, 0-9 and -"

first=$name-run-0-0.$name # pod 0 of job 0 of `run`
arguments=(--config "$config" "$@" --out "/runs/$name")
if [[ $devices =~ ^gpu:([1-9][0-9]*)x([1-9][0-9]*)$ ]]; then
    nodes=${BASH_REMATCH[1]}
    annotations='{}' selector='{}'
    limits="{nvidia.com/gpu: ${BASH_REMATCH[2]}}"
    # shellcheck disable=SC2016 # Kubernetes fills it in
    arguments+=(--coordinator "$first:8476" --processes "$nodes" --process '$(JOB_COMPLETION_INDEX)')
elif [[ $devices =~ ^(tpu[a-z0-9-]+):([1-9][0-9]*(x[1-9][0-9]*){1,2})$ ]] && ((${BASH_REMATCH[2]//x/*} % 4 == 0)); then
    nodes=$((${BASH_REMATCH[2]//x/*} / 4))
    annotations='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}' # all in one slice
    selector="{cloud.google.com/gke-tpu-accelerator: ${BASH_REMATCH[1]}, cloud.google.com/gke-tpu-topology: ${BASH_REMATCH[2]}}"
    limits='{google.com/tpu: 4}'
else
    usage "DEVICES=$devices must be such as gpu:4x8 or tpu-v5p-slice:4x4x2, with a multiple of 4 chips"
fi

quoted() { # as a JSON string
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}
list=''
for argument in "${arguments[@]}"; do list+="${list:+, }$(quoted "$argument")"; done

manifest=$(cat scripts/jobset.yaml)
manifest=${manifest//@NAME@/"$name"}
manifest=${manifest//@FIRST@/"$first"}
manifest=${manifest//@NODES@/"$nodes"}
manifest=${manifest//@ANNOTATIONS@/"$annotations"}
manifest=${manifest//@SELECTOR@/"$selector"}
manifest=${manifest//@DEVICES@/"$limits"}
manifest=${manifest//@IMAGE@/"$(quoted "$image")"}
manifest=${manifest//@CLAIM@/"$(quoted "$claim")"}
manifest=${manifest//@ARGUMENTS@/"[$list]"}
"${apply[@]}" <<<"$manifest"
