"""What a run has written about itself, read back. Without torch and lightning, so that reading is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scratchlm.files.journal import read_journal

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
MARKS = ("attempt", "step", "tokens", "time", "resumed_step")  # keys of a line of metrics that are no metrics


def read_metrics(run_folder: str | Path) -> list[dict[str, Any]]:
    """The metrics of a run as one line a step, in the order of steps, without what was given up.

    Args:
        run_folder: The folder with metrics.jsonl; without that file there are no lines.

    Returns:
        Dictionaries with `step`, `tokens`, `time`, `attempt` and whatever was logged at that step.
    """
    return one_line_a_step(read_journal(Path(run_folder) / METRICS_FILE))


def one_line_a_step(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges the lines of metrics.jsonl.

    A resumed attempt writes some steps a second time: what an earlier attempt wrote of steps after the one resumed from
    is left out, for those weights are gone.

    Args:
        lines: As they stand in the file.

    Returns:
        As `read_metrics`.
    """
    by_step: dict[int, dict[str, Any]] = {}
    attempt = 0
    for line in lines:
        if line["attempt"] != attempt:
            attempt = line["attempt"]
            kept = _steps_before(line)
            by_step = {step: merged for step, merged in by_step.items() if step <= kept}
        earlier = by_step.get(line["step"])
        by_step[line["step"]] = earlier | line if earlier else line
    return [by_step[step] for step in sorted(by_step)]


def _steps_before(first: dict[str, Any]) -> int:
    """Steps done before an attempt, by its first line: that of a step, or of the validation due before it."""
    is_of_a_step = "train/loss" in first or "train/learning_rate" in first
    before: int = first.get("resumed_step", first["step"] - is_of_a_step)
    return before


def read_samples(run_folder: str | Path) -> list[dict[str, Any]]:
    """The samples of a run in the order of steps, each with `step`, `tokens`, `prompt` and `completion`."""
    return without_lost_samples(read_journal(Path(run_folder) / SAMPLES_FILE))


def without_lost_samples(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out samples that a resumed attempt has drawn anew: where the steps go back, the earlier ones are lost."""
    kept: dict[tuple[int, str], dict[str, Any]] = {}
    last_step = 0
    for row in rows:
        if row["step"] < last_step:
            kept = {key: row_ for key, row_ in kept.items() if key[0] < row["step"]}
        last_step = row["step"]
        kept[row["step"], row["prompt"]] = row
    return list(kept.values())


@dataclass
class Attempt:
    """One process that worked on the run.

    Attributes:
        number: As the lines of metrics.jsonl have it; None for one that ended before it wrote a line.
        start: Its event `start`; None in a run without that journal.
        resumed_step: Steps done before it.
        last_step: Of its last line; None without one.
        seconds: Between its start and its last sign of life; what a clock set back took away is left out.
        end: Its event `stop` or `end`; None where it was killed, failed, or is still at work.
    """

    number: int | None
    start: dict[str, Any] | None
    resumed_step: int
    last_step: int | None
    seconds: float
    end: dict[str, Any] | None


def attempts(lines: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> list[Attempt]:
    """The processes of a run, oldest first.

    Args:
        lines: Of metrics.jsonl, as they stand in the file.
        events: Of events.jsonl.
    """
    logged: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        logged.setdefault(line["attempt"], []).append(line)
    started: list[list[dict[str, Any]]] = []
    for event in events:
        if event["kind"] == "start":
            started.append([])
        if started:
            started[-1].append(event)
    return [_attempt(events, lines) for events, lines in _paired(started, list(logged.values()))]


def _paired(
    started: list[list[dict[str, Any]]], logged: list[list[dict[str, Any]]]
) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The events of each process beside its lines.

    A process that ended early has no line; one that ran before there was a journal of events has no event.
    """
    if len(started) == len(logged):
        return list(zip(started, logged, strict=True))
    pairs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    waiting = list(started)
    for lines in logged:
        before: list[list[dict[str, Any]]] = []
        while waiting and waiting[0][0]["time"] <= lines[0]["time"]:
            before.append(waiting.pop(0))
        pairs += [(events, []) for events in before[:-1]]
        pairs.append((before[-1] if before else [], lines))
    return pairs + [(events, []) for events in waiting]


def _attempt(events: list[dict[str, Any]], lines: list[dict[str, Any]]) -> Attempt:
    start = events[0] if events else None
    ends = [event for event in events if event["kind"] in ("stop", "end")]
    first = start or {"step": _steps_before(lines[0])}
    return Attempt(
        number=lines[0]["attempt"] if lines else None,
        start=start,
        resumed_step=first["step"],
        last_step=lines[-1]["step"] if lines else None,
        seconds=_seconds([*events[:1], *lines, *ends[-1:]]),
        end=ends[-1] if ends else None,
    )


def _seconds(entries: list[dict[str, Any]]) -> float:
    return sum(max(0.0, float(later["time"] - earlier["time"])) for earlier, later in pairwise(entries))
