#!/usr/bin/env bash
# Sets up an environment with the test extras and runs the whole suite:  bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
pip install --quiet --editable '.[test]'
exec python -m pytest "$@"
