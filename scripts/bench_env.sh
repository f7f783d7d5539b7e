#!/usr/bin/env bash
# Makes the environments of the peers that bench.py train measures against; --help says how. Runs under macOS's bash 3.2 too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# They do not install together: litgpt wants huggingface-hub below 1.4, transformers above.
peers='litgpt transformers'
needs_of() {
    case $1 in
        litgpt) echo litgpt==0.5.13 lightning==2.6.6 ;;
        transformers) echo transformers==5.23.0 ;;
    esac
}

usage() {
    cat <<USAGE
Usage: scripts/bench_env.sh [FOLDER]

Makes one virtual environment for each peer of \`scripts/bench.py train\`, beside each other in FOLDER:
FOLDER/litgpt ($(needs_of litgpt)) and FOLDER/transformers ($(needs_of transformers)), each with the
torch of constraints.txt and without scratchlm. Run it again and it ends at once where nothing changed.

FOLDER is \$SCRATCHLM_BENCH where that is set, else .bench in the checkout; bench.py looks there too.
PYTHON: the interpreter to make them with, 3.11 or later; else .venv's, python3.11 or python3.
SCRATCHLM_TORCH_INDEX: the package index that torch comes from, as for ./setup_env.sh.
USAGE
}

fail() {
    echo "bench_env.sh: $2" >&2
    exit "$1"
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    -*) fail 2 "unknown argument '$1'; see scripts/bench_env.sh --help." ;;
esac
[ $# -le 1 ] || fail 2 "takes one folder; see scripts/bench_env.sh --help."
folder=${1:-${SCRATCHLM_BENCH:-$root/.bench}}

case $(uname -s) in
    Darwin) platform=darwin ;;
    *) platform=linux ;;
esac
torch=$(sed -n "s/^\(torch==[0-9.]*\); sys_platform == \"$platform\"\$/\1/p" "$root/constraints.txt")
[ -n "$torch" ] || fail 1 "constraints.txt pins no torch for $platform."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} "$root/.venv/bin/python" python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail 1 "no Python of 3.11 or later that can make virtual environments. Name one: PYTHON=/path/to/python"
}

# install ENVIRONMENT LOG WORDS...: pip, with its words in LOG.
install() {
    local environment=$1 log=$2
    shift 2
    "$environment/bin/python" -m pip install --no-input --disable-pip-version-check "$@" >>"$log" 2>&1
}

# Where there is no GPU, the ordinary index may bring gigabytes of CUDA libraries with torch.
install_torch() {
    if [ -n "${SCRATCHLM_TORCH_INDEX:-}" ]; then
        install "$1" "$2" --no-deps --index-url "$SCRATCHLM_TORCH_INDEX" "$torch"
    elif [ $platform = darwin ] || nvidia-smi -L >/dev/null 2>&1; then
        install "$1" "$2" "$torch"
    else
        install "$1" "$2" --no-deps "$torch+cpu" ||
            install "$1" "$2" --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
    fi
}

make_environment() {
    local environment=$1 needs=$2 stamp=$1/bench.stamp log=$1/bench.log made_of="$torch $2" began=$SECONDS python
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$made_of" ] && [ -x "$environment/bin/python" ]; then
        echo "$environment is up to date."
        return
    fi
    # A folder without a stamp is not of this script's making and is never removed.
    [ ! -e "$environment" ] || [ -f "$stamp" ] || fail 1 "$environment is not of this script's making. Remove it, or name another folder."
    python=$(find_python)
    rm -rf "$environment"
    mkdir -p "$environment"
    echo unfinished >"$stamp"
    echo "Making $environment: $made_of, some minutes (log: $log) ..."
    "$python" -m venv "$environment" >>"$log" 2>&1 || fail 1 "$python could not make a virtual environment; the log: $log"
    install_torch "$environment" "$log" || fail 1 "pip could not install $torch. Is there a network? The log: $log"
    # shellcheck disable=SC2086  # several requirements in one word
    install "$environment" "$log" "$torch" $needs || fail 1 "pip could not install $needs; the log: $log"
    echo "$made_of" >"$stamp"
    echo "  done in $((SECONDS - began)) s"
}

export PIP_USER=0 # a setting that pip refuses inside a virtual environment
for peer in $peers; do
    make_environment "$folder/$peer" "$(needs_of "$peer")"
done
