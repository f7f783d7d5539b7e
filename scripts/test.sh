#!/usr/bin/env bash
# Runs every check, making .venv first where it is missing; arguments go to pytest: bash scripts/test.sh tests/text -k char
# Installs no Debian packages: .ci/run does that, and a test that needs one skips itself by the package's name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash setup_env.sh --venv --dev
export PATH="$PWD/.venv/bin:$PATH"

failed=''
check() {
    local began=$SECONDS
    echo "$* ..."
    if "$@"; then
        echo "  done in $((SECONDS - began)) s"
    else
        echo "  FAILED"
        failed="$failed, $*"
    fi
}

check ruff check .
check ruff format --check .
check mypy
[ -z "$failed" ] || echo "FAILED: ${failed#, }; pytest runs all the same."

# Last, so that its summary is what one sees at the end.
status=0
python -m pytest -q "$@" || status=$?
[ -z "$failed" ] || [ $status -ne 0 ] || status=1
exit $status
