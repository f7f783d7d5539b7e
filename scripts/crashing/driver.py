"""Trainings killed at random moments, compared with undisturbed ones, and the table of it."""

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from benchmarks.report import table
from crashing.attempts import Attempt, Failed
from crashing.comparison import Compared, compare
from crashing.phases import Phase
from crashing.words import (
    LEAST_TOLERANCE,
    OPTIMIZERS,
    PRECISIONS,
    SAVE_EVERY,
    STEPS,
    TIMES_THE_SPREAD,
    VALIDATE_EVERY,
    WORKERS,
    Settings,
    corpus_words,
    fit_words,
    write_text,
)

from scratchlm.training.checkpoints import step_checkpoints

AIMS = (Phase.SAVE, Phase.STEP, Phase.VALIDATION, Phase.START)  # in turn
ONE_IN = 10  # kills hits a command started anew


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

    def __init__(self, given: argparse.Namespace, work: Path, import_seconds: float) -> None:
        """Makes text and bins.

        Args:
            given: The command line.
            work: Where everything goes.
            import_seconds: That a command started anew takes before it begins.
        """
        self.given, self.work, self.import_seconds = given, work, import_seconds
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
        self.whole_seconds = self.import_seconds + sum(place.nanoseconds) / 1e9
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
        """At which step, validation or save of the process to kill: early enough to leave some for kills to come."""
        if aim == Phase.START:
            return 1
        every = {Phase.STEP: 1, Phase.VALIDATION: VALIDATE_EVERY, Phase.SAVE: SAVE_EVERY}[aim]
        reached = (STEPS - done) / every * min(1.0, 2 / left)
        return 1 + int(self.random.random() * max(1.0, reached))


def crash(given: argparse.Namespace, work: Path, import_seconds: float) -> bool:
    """Makes all runs and prints what came of them.

    Args:
        given: The command line: kills, seed, device, and the tolerance on another than the CPU.
        work: Where the runs go.
        import_seconds: That a command started anew takes before it begins.

    Returns:
        Whether every comparison held.
    """
    test = CrashTest(given, work, import_seconds)
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
    tolerance = max(LEAST_TOLERANCE, TIMES_THE_SPREAD * spread)
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
