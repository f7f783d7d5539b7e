#!/usr/bin/env bash
# Makes the environment for this machine; --help says how it chooses. Runs under macOS's bash 3.2 too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
name=scratchlm

usage() {
    cat <<'USAGE'
Usage: ./setup_env.sh [--backend cuda|metal|cpu] [--venv] [--dev]

Makes or updates the environment that scratchlm runs in, at the versions of constraints.txt.

It looks for CUDA (Linux where nvidia-smi lists a GPU), then Metal (macOS on Apple silicon), else takes the CPU.
For CUDA and Metal, where conda, mamba or micromamba is there, it makes the conda environment `scratchlm` from
environment.cuda.yaml or environment.metal.yaml; otherwise, and for the CPU, a virtual environment in .venv.
Run it again after a pull; where nothing changed it ends at once.

  --backend NAME   take this backend, whatever the machine looks like
  --venv           make .venv even where there is conda
  --dev            add the tools of the tests: pytest, ruff, mypy, pre-commit
  --help           show this

SCRATCHLM_TORCH_INDEX: the package index that torch comes from. On Linux without a GPU the default is PyTorch's index of
builds without CUDA, used where the ordinary index would bring gigabytes of CUDA libraries. For an older NVIDIA driver,
set it to an index such as https://download.pytorch.org/whl/cu126.
USAGE
}

fail() {
    echo "setup_env.sh: $2" >&2
    exit "$1"
}

# timed WHAT LOG COMMAND...: runs it, its output in LOG, and says how long it took; the end of LOG where it failed.
timed() {
    local what=$1 log=$2 began=$SECONDS
    shift 2
    echo "$what ..."
    if ! "$@" >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail 1 "that failed after $((SECONDS - began)) s; the whole log: $log"
    fi
    echo "  done in $((SECONDS - began)) s"
}

backend='' only_venv=no dev=no
while [ $# -gt 0 ]; do
    case $1 in
        --backend)
            [ $# -ge 2 ] || fail 2 "--backend takes a name: cuda, metal or cpu."
            backend=$2
            shift
            ;;
        --backend=*) backend=${1#--backend=} ;;
        --venv) only_venv=yes ;;
        --dev) dev=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail 2 "unknown argument '$1'; see ./setup_env.sh --help." ;;
    esac
    shift
    case $backend in
        '' | cuda | metal | cpu) ;;
        *) fail 2 "--backend $backend: no such backend. Take cuda, metal or cpu." ;;
    esac
done

system=$(uname -s)
machine=$(uname -m)
case $system in
    Linux) ;;
    Darwin)
        # torch's last build for Intel Macs is 2.2. A shell under Rosetta says x86_64 on Apple silicon too.
        [ "$machine" = arm64 ] || fail 1 "torch has no builds for Intel Macs ($machine). On Apple silicon use a native shell: arch -arm64 bash"
        ;;
    *) fail 1 "$system is not supported. On Windows use WSL." ;;
esac

if [ -n "$backend" ]; then
    why="--backend asked for it"
elif [ "$system" = Darwin ]; then
    backend=metal
    why="macOS on Apple silicon"
elif gpus=$(nvidia-smi -L 2>/dev/null) && [ -n "$gpus" ]; then
    backend=cuda
    why="nvidia-smi lists ${gpus%%(*}"
    why=${why% }
else
    backend=cpu
    why="Linux, and nvidia-smi lists no GPU"
fi
case $backend-$system in
    cuda-Darwin) fail 2 "--backend cuda: CUDA needs Linux. Take metal or cpu." ;;
    metal-Linux) fail 2 "--backend metal: Metal needs macOS. Take cuda or cpu." ;;
esac

conda=''
if [ $only_venv = no ] && [ "$backend" != cpu ]; then
    for candidate in conda mamba micromamba "${CONDA_EXE:-}" "${MAMBA_EXE:-}"; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1; then
            conda=$(command -v "$candidate")
            break
        fi
    done
fi
cd "$root"

# The first Python of 3.11 or later that can make virtual environments.
find_python() {
    local candidate version='' lame='' old=''
    for candidate in python3.13 python3.12 python3.11 python3; do
        # Asked, not only found: version managers put stand-ins on PATH for versions that are not selected.
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            old=$version
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            lame=$candidate
        else
            command -v "$candidate"
            return
        fi
    done
    [ -z "$lame" ] || fail 1 "$lame cannot make virtual environments (no ensurepip). On Debian and Ubuntu: apt install $lame-venv"
    [ -z "$old" ] || fail 1 "Python 3.11 or later is needed, and the newest here is $old. Install one, from https://www.python.org or by uv, pyenv or conda."
    fail 1 "Python 3.11 or later is needed, and none is on PATH. Install one, from https://www.python.org or by uv, pyenv or conda."
}

# Hash of what .venv is made from.
fingerprint() {
    "$venv/bin/python" - "$root" <<'PYTHON'
import hashlib, sys
from pathlib import Path

root = Path(sys.argv[1])
files = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(repr((sys.version_info[:2], files)).encode()).hexdigest())
PYTHON
}

pip_install() {
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check -c constraints.txt "$@"
}

install_torch_from() {
    timed "Installing torch from $1" "$log" pip_install --no-deps --index-url "$1" torch
}

# On Linux the ordinary index may bring CUDA libraries with torch: gigabytes that a CPU has no use for.
install_torch_for_cpu() {
    local found
    # pip's report is what it would install: nothing where torch is there already.
    found=$(pip_install --quiet --dry-run --no-deps --report - torch 2>>"$log" | "$venv/bin/python" -c '
import json, sys
print(*(item["metadata"]["version"] for item in json.load(sys.stdin)["install"]))' 2>>"$log") ||
        fail 1 "pip cannot find the torch that constraints.txt pins. Is there a network? The log: $log"
    case $found in
        '') ;;
        *+cpu) timed "Installing torch $found" "$log" pip_install --no-deps torch ;;
        *) install_torch_from "${SCRATCHLM_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" ;;
    esac
}

# The stamp's lines: what cannot be changed in place, with --dev or not, and the fingerprint once all is installed. In place
# one cannot change torch's build, for pip takes another backend's for the same version, nor the folder, which the commands
# in .venv/bin name. A .venv without a stamp is not of this script's making and is never removed.
make_venv() {
    local build="$backend in $root${SCRATCHLM_TORCH_INDEX:+ from $SCRATCHLM_TORCH_INDEX}" stamp=$venv/scratchlm.stamp log=$venv/setup.log
    local made_build='' made_dev='' made_of='' extra='' python
    if [ -f "$stamp" ]; then
        { read -r made_build && read -r made_dev && read -r made_of; } <"$stamp" || true
        [ "$made_dev" != yes ] || dev=yes
    elif [ -e "$venv" ] && ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        fail 1 ".venv is not of this script's making, and has no Python 3.11 or later with pip. Remove it and run again."
    fi
    if [ "$made_build" = "$build" ] && [ "$made_dev" = $dev ] && [ -n "$made_of" ] && [ "$made_of" = "$(fingerprint)" ]; then
        echo ".venv is up to date."
        return
    fi
    [ $dev = no ] || extra='[dev]'
    if [ ! -e "$venv" ] || { [ -f "$stamp" ] && { [ "$made_build" != "$build" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; }; then
        python=$(find_python)
        rm -rf "$venv"
        mkdir "$venv"
        printf '%s\n%s\n' "$build" $dev >"$stamp"
        timed "Making .venv with $python" "$log" "$python" -m venv "$venv"
    fi
    printf '%s\n%s\n' "$build" $dev >"$stamp"
    : >"$log"
    if [ "$backend-$system" = cpu-Linux ]; then
        install_torch_for_cpu
    elif [ -n "${SCRATCHLM_TORCH_INDEX:-}" ]; then
        install_torch_from "$SCRATCHLM_TORCH_INDEX"
    fi
    timed "Installing scratchlm and what it needs at the versions of constraints.txt, some minutes (log: $log)" "$log" \
        pip_install -e ".$extra"
    check_torch
    printf '%s\n%s\n%s\n' "$build" $dev "$(fingerprint)" >"$stamp"
    echo "Ready: .venv/bin/scratchlm --help, or first: source .venv/bin/activate"
}

# Says whether torch sees the backend.
check_torch() {
    "$venv/bin/python" - "$backend" <<'PYTHON'
import sys

import torch

backend = sys.argv[1]
seen = {"cuda": torch.cuda.is_available, "metal": torch.backends.mps.is_available, "cpu": lambda: True}[backend]()
print(f"torch {torch.__version__}: {backend} " + ("works." if seen else "is NOT seen, so scratchlm would run on the CPU."))
if not seen and backend == "cuda":
    print("Where the NVIDIA driver is too old for this build, set SCRATCHLM_TORCH_INDEX; see ./setup_env.sh --help.")
PYTHON
}

make_conda_environment() {
    local file=environment.$backend.yaml tool log
    tool=$(basename "$conda")
    log=${TMPDIR:-/tmp}/setup_env.$$.log
    export CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true
    [ -z "${SCRATCHLM_TORCH_INDEX:-}" ] || export PIP_EXTRA_INDEX_URL=$SCRATCHLM_TORCH_INDEX
    if ! "$conda" env list | awk -v name=$name '$1 == name { found = 1 } END { exit !found }'; then
        timed "Making the conda environment $name from $file, some minutes (log: $log)" "$log" "$conda" env create -f "$file"
    elif [ "$tool" = micromamba ]; then
        timed "Updating the conda environment $name from $file (log: $log)" "$log" "$conda" install -n $name -f "$file"
    else
        timed "Updating the conda environment $name from $file (log: $log)" "$log" "$conda" env update -n $name -f "$file"
    fi
    if [ $dev = yes ]; then
        timed "Installing the tools of the tests" "$log" "$conda" run -n $name python -m pip install -c constraints.txt -e ".[dev]"
    fi
    rm -f "$log"
    echo "Ready: $tool activate $name, then: scratchlm --help"
}

export PIP_USER=0 # a setting that pip refuses inside a virtual environment
if [ -n "$conda" ]; then
    echo "Backend $backend ($why); environment: conda's $name, by $conda"
    make_conda_environment
else
    if [ $only_venv = yes ]; then
        because="--venv asked for it"
    elif [ "$backend" = cpu ]; then
        because="enough for a CPU"
    else
        because="no conda, mamba or micromamba here"
    fi
    echo "Backend $backend ($why); environment: .venv ($because)"
    make_venv
fi
