#!/usr/bin/env bash
# Sets up an environment with the test extras and runs the whole suite, three files of tests at a time on two cores, since some wait for
# processes that they start; files that share a run are in the same worker.  With arguments of pytest, these tests only:  bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
pip install --quiet --editable '.[test]'
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone" --durations 25
exec python -m pytest -m alone
