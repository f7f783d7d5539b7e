"""What a benchmark shows: bars while it runs, tables and verdicts at its end, the machine it ran on."""

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from scratchlm import __version__

LIBRARIES = ("numpy", "torch", "tokenizers", "fastokens", "tiktoken", "datasets", "orjson", "xxhash")


def bar(meaning: str, total: float, unit: str = "MB") -> "tqdm[None]":
    """A bar on stderr with rate and time left; a line now and then where that is no terminal."""
    form = "{desc}: {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(total=total, desc=meaning, unit=unit, bar_format=form, mininterval=interval, maxinterval=interval)


def spread(values: Sequence[float]) -> str:
    """Median and range, to three digits."""

    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    return f"{short(statistics.median(values))} ({short(min(values))}-{short(max(values))})"


def in_megabytes(values: Sequence[int | None]) -> str:
    """The largest, or a dash where it was not measured."""
    known = [value for value in values if value is not None]
    return f"{max(known) / 1e6:,.0f}" if known else "-"


def verdict(what: str, ratio: float, goal: float) -> str:
    """One line: the ratio and its goal."""
    return f"{what}: {ratio:.2f} times as fast, goal {goal:g}: {'met' if ratio >= goal else 'MISSED'}."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, with columns that also line up in a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.partition(":")[2].strip() for line in info.open() if line.startswith("model name")), cpu)
    versions = []
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            versions.append(f"{name} {metadata.version(name)}")
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True)
    return {
        "cpu": f"{cpu}, {n_cores()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(versions),
        "scratchlm": commit.stdout.strip() or __version__,
    }
