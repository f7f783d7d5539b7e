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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple, NoReturn

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before torch: a fork keeps one thread only
os.environ["WANDB_MODE"] = "disabled"
_began = time.monotonic()

from benchmarks.report import machine, table  # noqa: E402
from crashing.attempts import Attempt, Failed  # noqa: E402
from crashing.comparison import Compared, compare  # noqa: E402
from crashing.phases import Phase  # noqa: E402
from crashing.words import (  # noqa: E402
    OPTIMIZERS,
    PRECISIONS,
    SAVE_EVERY,
    STEPS,
    VALIDATE_EVERY,
    WORKERS,
    Settings,
    corpus_words,
    fit_words,
    write_text,
)

import scratchlm.run  # noqa: E402, F401  # what a fork would have to import
from scratchlm.training.checkpoints import step_checkpoints  # noqa: E402

_IMPORT_SECONDS = time.monotonic() - _began

AIMS = (Phase.SAVE, Phase.STEP, Phase.VALIDATION, Phase.START)  # in turn
ONE_IN = 10  # kills hits a command started anew
FLOOR, TIMES = 1e-3, 10  # of the tolerance, see --tolerance; chosen, not tuned


@dataclass
class Tally:
    """What came of the kills in runs of some settings."""

    landed: Counter[Phase] = field(default_factory=Counter)
    half_written: int = 0
    anew: int = 0
    compared: list[Compared] = field(default_factory=list)
    holds: bool = True


class CrashTest:
    """The runs, in one folder."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        """Makes text and bins.

        Args:
            given: The command line.
            work: Where everything goes.
        """
        self.given, self.work = given, work
        self.random = random.Random(given.seed)
        self.n_attempts = self.n_killed = 0
        self.began = time.monotonic()
        write_text(work / "days.txt")
        Attempt(["prepare", *corpus_words()], work, work / "prepare.txt").wait()

    def left_alone(self, settings: Settings, run: str) -> None:
        """Makes an undisturbed run, and learns from it how long each phase takes.

        Raises:
            Failed: It failed, or did not say that it found nothing to go on from.
        """
        attempt = self._started(settings, run)
        attempt.wait()
        place = attempt.place
        self.usual_seconds = {aim: place.nanoseconds[aim] / place.counts[aim] / 1e9 for aim in AIMS}
        self.whole_seconds = _IMPORT_SECONDS + sum(place.nanoseconds) / 1e9
        if "starting at step 0" not in attempt.log.read_text():
            raise Failed(f"{attempt.log}: --ckpt_path last found nothing to go on from, and did not say so")

    def killed(self, settings: Settings, run: str, n_kills: int) -> Iterator[Attempt]:
        """Makes a run that is killed up to so often, and fewer times where it ends before; gives each killed process.

        Raises:
            Failed: One ended by an error of its own.
        """
        for left in range(n_kills, 0, -1):
            anew = (self.n_killed + 1) % min(ONE_IN, self.given.kills) == 0
            done = max(step_checkpoints(self.work / run / "checkpoints"), default=0)
            attempt = self._started(settings, run, anew)
            if anew:
                has_hit = attempt.kill(Phase.START, 1, self.random.random() * self.whole_seconds)
            else:
                aim = AIMS[self.n_killed % len(AIMS)]
                wait_seconds = self.random.random() * self.usual_seconds[aim]
                has_hit = attempt.kill(aim, self._ordinal(aim, done, left), wait_seconds)
            if not has_hit:
                return
            self.n_killed += 1
            yield attempt
        self._started(settings, run).wait()

    def told(self, settings: Settings, attempt: Attempt) -> str:
        """A kill as a line."""
        place, half = attempt.place, attempt.half_written
        resumed = "-" if place.resumed_from < 0 else str(place.resumed_from)
        first = (place.first_step_at - attempt.began) / 1e9
        seconds = time.monotonic() - self.began
        left = seconds / self.n_killed * (self.given.kills - self.n_killed)
        return "  ".join(
            (
                f"{self.n_killed:>3}/{self.given.kills}",
                f"{settings!s:<30}",
                f"{'command' if attempt.anew else 'fork':<7}",
                f"in {place.phase.name.lower():<10}",
                f"after step {place.step:>2}",
                f"went on from {resumed:>2}",
                f"first step {f'{first:.1f} s' if first > 0 else '-':>5}",
                f"{f'{half:,} bytes half written' if half else '':<28}",
                f"{seconds:.0f} s, {left:.0f} s left",
            )
        )

    def _started(self, settings: Settings, run: str, anew: bool = False) -> Attempt:
        self.n_attempts += 1
        log = self.work / f"{run}-{self.n_attempts}.txt"
        place = log.with_suffix(".place")
        words = fit_words(settings, run, self.given.device, place)
        return Attempt(words, self.work, log, place, self.work / run, anew)

    def _ordinal(self, aim: Phase, done: int, left: int) -> int:
        """At which step, validation or save of the process to kill: early enough to leave steps for the kills to come."""
        if aim == Phase.START:
            return 1
        every = {Phase.STEP: 1, Phase.VALIDATION: VALIDATE_EVERY, Phase.SAVE: SAVE_EVERY}[aim]
        most = max(1.0, 2 * (STEPS - done) / left / every)
        return 1 + int(self.random.random() * most)


def crash(given: argparse.Namespace, work: Path) -> bool:
    """Makes all runs and prints what came of them.

    Returns:
        Whether every comparison held.
    """
    test = CrashTest(given, work)
    every = [Settings(*choice) for choice in product(PRECISIONS, OPTIMIZERS, WORKERS)]
    tallies = {settings: Tally() for settings in every}
    alone: dict[Settings, tuple[str, float]] = {}  # run and tolerance
    for number, (settings, tally) in enumerate(tallies.items()):
        left = (number + 1) * given.kills // len(every) - number * given.kills // len(every)
        reference = settings._replace(workers=0)  # with workers or without, the numbers are to be the same
        if left and reference not in alone:
            alone[reference] = _reference(test, reference, f"alone-{number}")
        while left:
            run = f"killed-{number}-{len(tally.compared)}"
            for attempt in test.killed(settings, run, left):
                left -= 1
                tally.landed[attempt.place.phase] += 1
                tally.half_written += attempt.half_written > 0
                tally.anew += attempt.anew
                print(test.told(settings, attempt), flush=True)
            undisturbed, tolerance = alone[reference]
            tally.compared.append(compare(work / undisturbed, work / run, STEPS))
            is_same = tally.compared[-1].largest <= tolerance if tolerance else not tally.compared[-1].different
            tally.holds &= is_same and not tally.compared[-1].faults
    print(f"\n{_table(tallies)}\n")
    for settings, tally in tallies.items():
        for compared in tally.compared:
            print("".join(f"{settings}: {fault}\n" for fault in compared.faults), end="")
    holds = all(tally.holds for tally in tallies.values())
    print(f"{test.n_killed} kills: {'the same model' if holds else 'NOT the same model'}")
    return holds


def _reference(test: CrashTest, settings: Settings, run: str) -> tuple[str, float]:
    """An undisturbed run, and how far a killed one may be from it: on a CPU not at all."""
    test.left_alone(settings, run)
    if test.given.device == "cpu" or test.given.tolerance is not None:
        return run, test.given.tolerance or 0.0
    test.left_alone(settings, f"{run}-again")
    spread = compare(test.work / run, test.work / f"{run}-again", STEPS).largest
    tolerance = max(FLOOR, TIMES * spread)
    print(f"{settings}: two undisturbed runs differ by {spread:.1e}, a killed one may by {tolerance:.1e}", flush=True)
    return run, tolerance


def _table(tallies: dict[Settings, Tally]) -> str:
    header = ["settings", "kills", *(f"in {phase.name.lower()}" for phase in Phase), "half-written", "commands", "runs"]
    header += ["steps compared", "floats compared", "that differ", "largest difference"]
    rows = []
    for settings, tally in tallies.items():
        compared = tally.compared
        counts = [tally.landed.total(), *(tally.landed[phase] for phase in Phase), tally.half_written, tally.anew]
        counts += [len(compared), sum(one.steps for one in compared), sum(one.floats for one in compared)]
        counts += [sum(one.different for one in compared)]
        largest = max((one.largest for one in compared), default=0.0)
        rows.append([str(settings), *(f"{n:,}" for n in counts), f"{largest:.1e}" if largest else "0"])
    return table(header, rows)


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
        f"{TIMES} times that of two undisturbed runs, and {FLOOR:g} at least)",
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
    work = (given.keep or Path(tempfile.mkdtemp(prefix="scratchlm-crash-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name}: {value}" for name, value in machine().items()) + f"\nseed: {given.seed}\n", flush=True)
    try:
        holds = crash(given, work)
    except Failed as error:
        sys.exit(f"crash_test.py: {error}\nThe runs are in {work}.")
    if holds and not given.keep:
        shutil.rmtree(work)
    elif not holds:
        sys.exit(f"The runs are in {work}.")


if __name__ == "__main__":
    main()
