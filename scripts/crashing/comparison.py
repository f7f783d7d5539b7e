"""Two runs of the same settings, compared by the bits of every number that training made."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from crashing.phases import SEEN_FILE

from scratchlm.files.journal import read_journal
from scratchlm.training.checkpoints import step_checkpoints
from scratchlm.training.loggers import METRICS_FILE, read_metrics

_PARTS = ("state_dict", "optimizer_states", "callbacks")  # of a checkpoint


class Compared(NamedTuple):
    """What two runs have in common."""

    steps: int
    floats: int
    different: int  # of the floats
    largest: float  # difference, relative: of a tensor's numbers to the largest of them
    faults: list[str]  # what no rounding explains


def compare(expected: Path, found: Path, n_steps: int) -> Compared:
    """Compares the metrics of every step, what each micro-batch held, and the last weights and optimizer state.

    Args:
        expected: Folder of the run that was left alone.
        found: Folder of the other.
        n_steps: Steps of a run.
    """
    faults = [*_faults_of_lines(found, n_steps), *_leftovers(found)]
    if _seen(found) != _seen(expected):
        faults.append("micro-batches held other sequences")
    numbers = [dict(_numbers(run, n_steps)) for run in (expected, found)]
    if other := sorted(numbers[0].keys() ^ numbers[1].keys()):
        faults.append(f"only one of the runs has {', '.join(other[:5])}")
    floats = different = 0
    largest = 0.0
    for name in numbers[0].keys() & numbers[1].keys():
        one, two = numbers[0][name], numbers[1][name]
        if one.shape != two.shape or one.dtype != two.dtype:
            faults.append(f"{name}: another shape or type")
            continue
        floats += one.size
        different += int((_bits(one) != _bits(two)).sum())
        scale = float(np.abs(one).max(initial=0)) or 1.0
        largest = max(largest, float(np.abs(one.astype(float) - two).max(initial=0)) / scale)
    return Compared(n_steps, floats, different, largest, faults)


def _numbers(run: Path, n_steps: int) -> Iterator[tuple[str, Any]]:
    """Every number by its name, as arrays."""
    for line in read_metrics(run):
        for name, value in line.items():
            if name.startswith(("train/", "val/")):
                yield f"{name} of step {line['step']}", np.array(value, np.float64)
    last = step_checkpoints(run / "checkpoints")[n_steps]
    content = torch.load(last, weights_only=True)
    yield from _leaves({name: content[name] for name in _PARTS}, last.name)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield name, value.numpy()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{name} {i}")
    elif isinstance(value, int | float):
        yield name, np.array(value, np.float64)


def _bits(numbers: Any) -> Any:
    """Each number's bytes as a whole number, by which NaN equals NaN and -0 is not 0."""
    return np.ascontiguousarray(numbers).view(f"u{numbers.dtype.itemsize}")


def _faults_of_lines(run: Path, n_steps: int) -> Iterator[str]:
    steps = [line["step"] for line in read_metrics(run)]
    if steps != list(range(1, n_steps + 1)):
        yield f"a reader of {METRICS_FILE} gets the steps {steps}"
    for (attempt, step, name), n in Counter(
        (line["attempt"], line["step"], name)
        for line in read_journal(run / METRICS_FILE)
        for name in line.keys() - {"attempt", "step", "tokens", "time"}
    ).items():
        if n > 1:
            yield f"{METRICS_FILE}: attempt {attempt} wrote {name} of step {step} {n} times"


def _leftovers(run: Path) -> Iterator[str]:
    for path in run.rglob(".*.partial-*"):
        yield f"{path.relative_to(run)} was left behind"


def _seen(run: Path) -> dict[int, int]:
    return {line["batch"]: line["crc"] for line in read_journal(run / SEEN_FILE)}
