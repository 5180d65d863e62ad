# Sourced by the other scripts: uses the active environment, or makes .venv with the tested versions of requirements.txt.
# shellcheck shell=bash
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; set PYTHON to one" >&2; exit 2; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi
pip install --quiet --requirement requirements.txt
pip install --quiet --no-deps --editable .
