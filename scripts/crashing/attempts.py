"""Processes of `scratchlm fit`: forked off this one, which has imported all of it, or started anew; and killed."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crashing.phases import Phase, Place

import scratchlm.run  # so that no fork has to
from scratchlm.cli import main

_LOOK_SECONDS = 0.0005  # between two looks at where the training stands; chosen, not tuned

_forks = multiprocessing.get_context("fork")


class Failed(Exception):
    """A training ended by itself, and not well; the message holds its last words."""


class Attempt:
    """One process of the command."""

    def __init__(
        self,
        words: Sequence[str],
        work: Path,
        log: Path,
        place: Path | None = None,
        run: Path | None = None,
        anew: bool = False,
    ) -> None:
        """Starts it.

        Args:
            words: What follows `scratchlm`.
            work: Its working folder.
            log: File for what it prints.
            place: File in which its callback `Phases` tells how far it is.
            run: Its run folder.
            anew: Have it import everything by itself, as from a shell.
        """
        self.log, self.run, self.anew = log, run, anew
        if place:
            self.place = Place(place)
        self.half_written = 0  # bytes of a checkpoint that the kill has left
        self.began = time.monotonic_ns()
        self._process = _forks.Process(target=_run, args=(list(words), work, log, anew))
        self._process.start()

    def kill(self, phase: Phase, ordinal: int, wait_seconds: float) -> bool:
        """Kills it some time after it has come to a phase for the n-th time.

        Returns:
            False where it ended before that.

        Raises:
            Failed: It ended by an error.
        """
        try:
            while self.place.counts[phase] < ordinal and self._process.is_alive():
                time.sleep(_LOOK_SECONDS)
            time.sleep(wait_seconds)
        finally:
            self._process.kill()
        if self._has_ended_well():
            return False
        assert self.run
        self.half_written = sum(
            path.stat().st_size for path in self.run.glob(f"checkpoints/.*.partial-{self._process.pid}")
        )
        return True

    def wait(self) -> None:
        """Waits until it has ended.

        Raises:
            Failed: By an error.
        """
        try:
            self._has_ended_well()
        finally:
            self._process.kill()

    def _has_ended_well(self) -> bool:
        self._process.join()
        status = self._process.exitcode
        if status not in (0, -signal.SIGKILL):
            last = self.log.read_text(errors="replace").splitlines()[-20:]
            raise Failed("\n".join([f"the command ended with status {status}; its last words:", *last]))
        return status == 0


def _run(words: list[str], work: Path, log: Path, anew: bool) -> None:
    os.chdir(work)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if anew:
        folders = [str(Path(__file__).parents[1]), str(Path(scratchlm.__file__).parents[1])]
        paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.execve(sys.executable, [sys.executable, "-m", "scratchlm", *words], os.environ | {"PYTHONPATH": paths})
    sys.argv = ["scratchlm", *words]
    main()
