#!/usr/bin/env bash
# The whole pipeline on the embedded world, from pretraining to report.html:  bash scripts/quickstart.sh [--dotted.key value ...]
# The same command resumes an interrupted run.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec instruct-jax run --config configs/quickstart.yaml "$@"
