"""A run folder -> one HTML page that needs nothing else: no network, no library, no other file."""

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from scratchlm.errors import BadValue, MissingFile
from scratchlm.files.journal import whole_lines
from scratchlm.files.whole import write_text
from scratchlm.training import report_sections as sections
from scratchlm.training.events import EVENTS_FILE
from scratchlm.training.run_charts import charts
from scratchlm.training.run_log import (
    METRICS_FILE,
    SAMPLES_FILE,
    attempts,
    one_line_a_step,
    without_lost_samples,
)

_MARKS = ("attempt", "step", "tokens", "time")  # that each line of metrics has


def report(run: str, output: str | None = None, wandb: bool = False) -> None:
    """Writes a page about a run: curves, samples, corpus, configuration, environment, and what happened to it.

    Args:
        run: The run folder.
        output: The HTML file to write; report.html in the run folder if not given.
        wandb: Instead of the page, write a whole new W&B run out of metrics.jsonl and samples.jsonl, for when what W&B
            has of the run is beyond mending.

    Raises:
        MissingFile: There is no such run.
        BadValue: There is nothing to write to W&B, or W&B is turned off.
    """
    folder = Path(run)
    if not any((folder / name).exists() for name in (METRICS_FILE, EVENTS_FILE, SAMPLES_FILE, "config.yaml")):
        raise MissingFile(
            f"--run={run}: no run there (none of config.yaml, {METRICS_FILE}, {EVENTS_FILE}). Name the folder that "
            "scratchlm fit has written to, such as runs/quickstart."
        )
    if wandb:
        _write_wandb_run(folder)
        return
    path = Path(output) if output is not None else folder / "report.html"
    if path.is_dir():
        raise BadValue(f"--output={path}: a folder. Name a file to write, such as {path}/report.html.")
    text = page(folder)
    write_text(path, text.encode("utf-8", "replace").decode())  # half a surrogate pair cannot be written
    print(path)


def page(folder: Path) -> str:
    """The page about a run.

    Args:
        folder: The run folder; what is missing or damaged in it is named on the page.
    """
    notes: list[str] = []
    log = _read(folder, METRICS_FILE, notes, _MARKS)
    events = _read(folder, EVENTS_FILE, notes, ("kind", "step", "time"))
    samples = _read(folder, SAMPLES_FILE, notes, ("step", "prompt", "completion"))
    configuration = _configuration(folder, notes)
    lines, processes = one_line_a_step(log), attempts(log, events)
    happened = [event for event in _not_given_up(events) if event["kind"] in ("skipped", "spike")]
    body = [
        sections.header(folder, lines, processes, configuration),
        sections.notes_box(notes),
        sections.CONTROLS if lines else "<h2>Curves</h2><p class=quiet>No step was logged yet.</p>",
        sections.samples_table(without_lost_samples(samples)),
        sections.attempts_table(processes),
        sections.events_table(happened),
        sections.corpus_card(folder, configuration),
        sections.configuration_text(folder),
        sections.environment_table(processes),
    ]
    resumed = [process for process in processes if process.number is not None][1:]
    drawn: dict[str, Any] = {
        "tokensPerStep": lines[-1]["tokens"] / max(1, lines[-1]["step"]) if lines else 0,
        "charts": charts(lines),
        "resumes": [sections.resume_mark(process) for process in resumed],
        "marks": [sections.event_mark(event) for event in happened[: sections.SHOWN_EVENTS]],
    }
    drawn["lastStep"] = max([1, *(line["step"] for line in lines[-1:]), *(mark["step"] for mark in drawn["marks"])])
    return _filled(html.escape(folder.resolve().name), "\n".join(body), json.dumps(drawn))


def _filled(title: str, body: str, data: str) -> str:
    template = resources.files("scratchlm.training").joinpath("report.html").read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": title,
        "body": body,
        # Inside a script element only "<" can end it or begin a comment.
        "data": data.replace("<", "\\u003c"),
        "script_hash": f"sha256-{digest}",  # so that a browser runs no other script, wherever one might slip in
    }
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], template)


def _read(folder: Path, name: str, notes: list[str], needed: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a journal that have what every line must have; says what is wrong with the others."""
    path = folder / name
    if not path.exists():
        notes.append(f"{name}: there is none.")
        return []
    lines, damaged = whole_lines(path)
    sound = [line for line in lines if all(_is_sound(key, line.get(key)) for key in needed)]
    if damaged:
        notes.append(f"{name}: damaged and left out: line {', '.join(f'{number:,}' for number in damaged[:10])}.")
    if len(sound) < len(lines):
        notes.append(f"{name}: {len(lines) - len(sound):,} lines lack one of {', '.join(needed)} and are left out.")
    if not lines:
        notes.append(f"{name}: empty.")
    return sound


def _is_sound(key: str, value: Any) -> bool:
    if key in ("kind", "prompt", "completion"):
        return isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and (key == "time" or isinstance(value, int))


def _configuration(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append("config.yaml: there is none.")
    except yaml.YAMLError:
        notes.append("config.yaml: no valid YAML.")
    else:
        if isinstance(found, dict):
            return found
        notes.append("config.yaml: holds no keys.")
    return {}


def _not_given_up(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of steps that still count: those after the step that a later process went on from do not."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == "start":
            kept = [earlier for earlier in kept if earlier["step"] <= event["step"]]
        kept.append(event)
    return kept


def _write_wandb_run(folder: Path) -> None:
    notes: list[str] = []
    lines = _read(folder, METRICS_FILE, notes, _MARKS)
    if not lines:
        raise BadValue(f"--run={folder}: {METRICS_FILE} has no line to write to W&B. Train first.")
    from scratchlm.training.loggers import WandbRun, wandb_mode

    mode = wandb_mode()
    if mode == "disabled":
        raise BadValue("--wandb=true: WANDB_MODE=disabled turns W&B off. Unset it, or say offline.")
    last = lines[-1]
    tokens_per_step = last["tokens"] // max(1, last["step"])
    run = WandbRun(folder, os.urandom(4).hex(), tokens_per_step, mode, _configuration(folder, notes))
    run.replay(max(line["step"] for line in lines))
    run.finalize("success")
