#!/usr/bin/env bash
# One run on a TPU slice of Google Cloud, from the request to the report, through preemptions:
#   bash scripts/tpu_vm.sh [--dry-run] [--spot] NAME TYPE ZONE BUCKET CONFIG [--dotted.key value ...]
#   bash scripts/tpu_vm.sh --spot paper-6b v5p-64 us-east5-a my-bucket configs/instructgpt_6b.yaml --ppo.kl_coef 0.05
# Sends this checkout to all workers and mounts the bucket there as runs/; the run folder is gs://BUCKET/NAME.  A slice that is taken away
# is requested again and the run resumes, until report.html is there; then, or when the run cannot
# resume, the slice is deleted.
# Ctrl-C leaves the slice as it is; the same command resumes.  --dry-run prints the commands of one session and calls nothing.
# Run it where the network holds, such as in tmux on a small VM.
# Needs gcloud with a project, its key in the ssh agent (ssh-add ~/.ssh/google_compute_engine), and a bucket with hierarchical namespace,
# where renaming a folder is one step, near the slice.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "$1" >&2
    echo "usage: bash scripts/tpu_vm.sh [--dry-run] [--spot] NAME TYPE ZONE BUCKET CONFIG [--dotted.key value ...]" >&2
    exit 2
}

# On each worker: installs what is missing and runs.
worker() {
    local bucket=$1 name=$2 config=$3
    shift 3
    trap 'exit 1' ERR # 2 is for bad config or data
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -d .venv ] || uv venv --python 3.11 # the images have 3.10
    uv pip install --constraint requirements.txt '.[tpu]'
    if ! command -v gcsfuse >/dev/null; then
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
        echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        sudo apt-get -o DPkg::Lock::Timeout=600 update
        sudo apt-get -o DPkg::Lock::Timeout=600 install --yes gcsfuse
    fi
    mkdir -p runs # without caches, so that each worker sees what another has just written
    mountpoint -q runs || gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 --metadata-cache-negative-ttl-secs 0 "$bucket" runs
    pkill -x instruct-jax || true # what a broken connection left behind holds the TPU
    while pgrep -x instruct-jax >/dev/null; do sleep 5; done
    exec .venv/bin/instruct-jax run --config "$config" "$@" --out "runs/$name"
}
if [ "${1:-}" = --worker ]; then
    worker "${@:2}"
fi

dry='' spot=''
while :; do
    case ${1:-} in
    --dry-run) dry=yes ;;
    --spot) spot=yes ;;
    *) break ;;
    esac
    shift
done
[ $# -ge 5 ] || usage "NAME, TYPE, ZONE, BUCKET and CONFIG are needed"
name=$1 type=$2 zone=$3 bucket=${4#gs://} config=$5
shift 5
[ -f "$config" ] || usage "$config: no such file in $PWD"
[[ " $* " != *" --stages"* ]] || usage "--stages: a launched run is the whole chain, report.html tells that it is finished"
case $type in
v4-*) image=tpu-ubuntu2204-base ;;
v5litepod-*) image=v2-alpha-tpuv5-lite ;;
v5p-*) image=v2-alpha-tpuv5 ;;
v6e-*) image=v2-alpha-tpuv6e ;;
*) usage "TYPE=$type: v4-, v5litepod-, v5p- and v6e- slices are known, such as v5p-64" ;;
esac

call() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}
queue() { call gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
request() {
    local scopes=https://www.googleapis.com/auth/cloud-platform
    queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$image" --scopes="$scopes" ${spot:+--spot}
}
release() { queue delete --force --quiet; }
state() { queue describe --format='value(state.state)' 2>/dev/null || true; } # empty where nothing was requested
finished() { gcloud storage ls "gs://$bucket/$name/report.html" >/dev/null 2>&1; }
session() {
    local code=${TMPDIR:-/tmp}/instruct_jax-$name.tgz work
    work="mkdir -p instruct_jax && tar -xzf instruct_jax.tgz -C instruct_jax && cd instruct_jax"
    work+=" && bash scripts/tpu_vm.sh --worker $(printf '%q ' "$bucket" "$name" "$config" "$@")"
    call tar -czf "$code" --exclude-vcs --exclude=./.venv --exclude=./runs . &&
        call gcloud compute tpus tpu-vm scp "$code" "$name:instruct_jax.tgz" --zone="$zone" --worker=all --quiet &&
        call gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --quiet --command="$work"
}
if [ -n "$dry" ]; then
    request
    state
    session "$@"
    release
    exit
fi

give_up() {
    release || true
    echo "$name: $1; the slice is deleted, gs://$bucket/$name stays and the same command resumes" >&2
    exit "$2"
}
failures=0 # in a row, without an hour of work or a preemption between them
until finished; do
    now=$(state)
    echo "$(date -u +%FT%TZ) $name: ${now:-not requested}" >&2
    case $now in
    '') request || { failures=$((failures + 1)) && sleep 60; } ;;
    ACTIVE)
        code=0 begun=$SECONDS
        session "$@" || code=$?
        [ "$code" != 2 ] || give_up "bad config or data, see above" 2
        [ $((SECONDS - begun)) -lt 3600 ] || failures=0
        if [ "$code" != 0 ]; then
            sleep 60 # until a slice that was taken away says so
            if [ "$(state)" = ACTIVE ]; then failures=$((failures + 1)); else failures=0; fi
        fi
        ;;
    FAILED)
        failures=$((failures + 1))
        release || sleep 60
        ;;
    SUSPENDED) release || sleep 60 ;;
    *) sleep 30 ;;
    esac
    [ "$failures" -lt 3 ] || give_up "three failures in a row, see above" 1
done
[ -z "$(state)" ] || release
echo "done: gs://$bucket/$name, see gs://$bucket/$name/report.html"
