#!/usr/bin/env bash
# Measures this machine's GPU in one run of under 8 minutes and writes a table into docs/benchmarks.md; --help says what.
# Needs torch and what scratchlm imports, not scratchlm itself: PYTHON=python3 scripts/bench_gpu.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'USAGE'
Usage: scripts/bench_gpu.sh [--page FILE] [--json FILE] [--minutes N] [--environments FOLDER] [--dry-run]

Measures the first CUDA device: whether it computes what it should; the 220m network in `scratchlm fit` against the
peers that are here (in FOLDER, see scripts/bench_env.sh, or installed beside scratchlm); memory with micro-batches of 1
and of what data.micro_batch_size=auto takes, with and without activation checkpointing; a run that is killed and goes
on; the Trainer's own cost. Writes it all into FILE (docs/benchmarks.md), under the device's name.

  --dry-run    the same on a CPU with a tiny network, written nowhere but into --page
  --minutes N  what is not measured by then is left out (default: 8)

PYTHON: the interpreter; else .venv's, or python3.
USAGE
}

fail() {
    echo "bench_gpu.sh: $2" >&2
    exit "$1"
}

dry=no
for word in "$@"; do
    case $word in
        -h | --help)
            usage
            exit 0
            ;;
        --dry-run) dry=yes ;;
    esac
done
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python" || true)" ] || python=python3
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"

# The last line of what Python says is the module that is missing.
missing=$("$python" -c 'import scratchlm.run' 2>&1) ||
    fail 1 "$python cannot run scratchlm: ${missing##*$'\n'}. Install that, or name another interpreter: PYTHON=..."
[ $dry = yes ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail 1 "torch sees no CUDA device. --dry-run goes through it all on a CPU, with a tiny network."
exec "$python" "$root/scripts/bench.py" gpu "$@"
