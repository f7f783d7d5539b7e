"""What the Trainer itself costs: a whole `scratchlm fit` against a bare loop over the same module and data."""

import argparse
import os
import statistics
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.outputs import OURS
from benchmarks.report import bar, spread, table
from benchmarks.shapes import SHAPES
from benchmarks.training import environment_of, fit_command
from benchmarks.turns import Contestant

_GOAL, _GOAL_SHAPE = 1.02, "5m"  # times the seconds of the bare loop
_TERMINAL = (40, 120)  # rows and columns of the terminal that the progress bar is drawn on


def loop(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Steps of a fit with everything at defaults, in turn with steps of a bare loop inside the same process."""
    wandb_mode = "offline" if find_spec("wandb") else "disabled"
    print(f"W&B: {wandb_mode}")
    with ExitStack() as stack:
        fit = stack.enter_context(_fitting("fit", given, work, wandb_mode))
        bare = stack.enter_context(_fitting("bare", given, work, "disabled")) if given.apart else fit
        for contestant in {id(one): one for one in (fit, bare)}.values():
            facts = contestant.answer()
            contestant.turn(steps=given.steps)
        bare.turn(bare=given.steps)
        runs: dict[str, list[dict[str, Any]]] = {"fit": [], "bare": []}
        with bar("rounds", 2 * given.rounds, "turns") as progress:
            for _ in range(given.rounds):
                runs["fit"].append(fit.turn(steps=given.steps))
                runs["bare"].append(bare.turn(bare=given.steps))
                progress.update(2)
    return {"facts": facts, "steps_a_round": given.steps, "runs": runs, **_report(given, runs)}


def _report(given: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Prints the table; gives the ratios."""
    milliseconds = {
        name: [1000 * (run["seconds"] - (0 if given.count_pauses else run["paused"])) / given.steps for run in rounds]
        for name, rounds in runs.items()
    }
    paused = sum(run["paused"] for run in runs["fit"])
    rows = [
        [name, spread(values), f"{min(values):.3f}", f"{statistics.median(values):.3f}"]
        for name, values in milliseconds.items()
    ]
    print(f"\n{given.shape} in {given.precision}, {given.rounds} rounds of {given.steps} steps\n")
    print(table(["contestant", "ms a step, median (range)", "least", "median"], rows))
    ratios = {
        "ratio_of_minima": min(milliseconds["fit"]) / min(milliseconds["bare"]),
        "ratio_of_medians": statistics.median(milliseconds["fit"]) / statistics.median(milliseconds["bare"]),
    }
    counted = "counted" if given.count_pauses else "not counted"
    print(f"\nvalidation, samples and checkpoints took {paused:.1f} s of the fit's rounds, {counted}.")
    verdict = ""
    if given.shape == _GOAL_SHAPE:
        met = "met" if ratios["ratio_of_minima"] <= _GOAL else "MISSED"
        verdict = f"; goal at most {_GOAL:g} of minima: {met}"
    print(
        f"{OURS} fit against the bare loop: ratio of minima {ratios['ratio_of_minima']:.3f}, of medians "
        f"{ratios['ratio_of_medians']:.3f}{verdict}."
    )
    return ratios


@contextmanager
def _fitting(name: str, given: argparse.Namespace, work: Path, wandb_mode: str) -> Iterator[Contestant]:
    """A fit that waits for orders, its standard error on a terminal, so that the progress bar is drawn."""
    folder = work / name
    folder.mkdir()
    python, environment = environment_of(OURS, given)
    environment |= {"WANDB_MODE": wandb_mode, "WANDB_SILENT": "true"}
    shape = SHAPES[given.shape]
    shape = shape._replace(sequences=given.sequences or shape.sequences)
    command = fit_command(shape, given.precision, given.device, folder, given.set or [], quiet=False)
    with _terminal(folder / "log.txt") as stderr:
        contestant = Contestant(name, [python, *command], environment, folder / "log.txt", stderr)
        try:
            yield contestant
        finally:
            contestant.end()


@contextmanager
def _terminal(log: Path) -> Iterator[int]:
    """A terminal's file descriptor; what is written to it is added to a file, or a full terminal would block."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, _TERMINAL)

    def drain() -> None:
        with suppress(OSError):  # how Linux says that the other end is closed
            while written := os.read(ours, 1 << 16):
                with log.open("ab") as file:
                    file.write(written)

    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        drainer.join()
        os.close(ours)
