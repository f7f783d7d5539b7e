#!/usr/bin/env python3
"""Kills trainings at random moments, goes on by the same command, and compares every number with undisturbed runs.

A kill is SIGKILL to a process of `scratchlm fit`. One in ten hits a command started anew, the others forks of this
process, which has imported everything: that saves seconds each. A run is killed and gone on with until it ends; its
losses and gradient norms of every step, its validation losses, last weights and optimizer state must then equal those
of a run that was left alone: on a CPU to the bit, on another device within a tolerance.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from crashing.words import LEAST_TOLERANCE, TIMES_THE_SPREAD


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and exit status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _given() -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--seed", type=int, help="of the moments, which also depend on the machine (default: drawn)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the runs, to look at them")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference allowed on another device than the CPU (default: "
        f"{TIMES_THE_SPREAD} times that of two undisturbed runs, and {LEAST_TOLERANCE:g} at least)",
    )
    given = parser.parse_args()
    if given.kills < 1:
        parser.error(f"--kills={given.kills}: give a whole number from 1.")
    if given.tolerance is not None and (given.device == "cpu" or not given.tolerance > 0):
        parser.error(f"--tolerance={given.tolerance}: above 0, and for other devices: a CPU makes the same bits.")
    if given.keep and given.keep.exists() and (not given.keep.is_dir() or any(given.keep.iterdir())):
        parser.error(f"--keep={given.keep}: is there already. Name a new folder.")
    given.seed = random.randrange(2**32) if given.seed is None else given.seed
    return given


def main() -> None:
    """Exits with 1 where a number differs, or the command failed."""
    given = _given()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of threads, a fork keeps one only
    os.environ["WANDB_MODE"] = "disabled"
    began = time.monotonic()

    from benchmarks.report import machine
    from crashing.attempts import Failed
    from crashing.driver import crash

    import_seconds = time.monotonic() - began
    work = (given.keep or Path(tempfile.mkdtemp(prefix="scratchlm-crash-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name}: {value}" for name, value in machine().items()) + f"\nseed: {given.seed}\n", flush=True)
    try:
        holds = crash(given, work, import_seconds)
    except Failed as error:
        sys.exit(f"crash_test.py: {error}\nThe runs are in {work}.")
    if not holds:
        sys.exit(f"The runs are in {work}.")
    if not given.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
