"""The sections of the page about a run, as HTML. Whatever a file of the run says is escaped."""

import datetime
import html
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scratchlm.errors import MissingFile, UserError
from scratchlm.training.run_log import SAMPLES_FILE, Attempt

_SHOWN_VALIDATIONS = 100  # whose samples stand side by side; of more, some are left out (chosen, not tuned)
_SHOWN_SEQUENCES, _SHOWN_DOCUMENTS, _SHOWN_CHARACTERS = 8, 6, 300  # of one event; chosen, not tuned
SHOWN_EVENTS = 200  # steps left out and spikes in the table and on the curves (chosen, not tuned)


def resume_mark(process: Attempt) -> dict[str, Any]:
    """What the curves show where a process went on with the run."""
    changed = _changed(process)
    label = f"attempt {process.number}, from step {process.resumed_step:,}" + (f": {changed}" if changed else "")
    return {"attempt": process.number, "step": process.resumed_step, "label": label}


def event_mark(event: dict[str, Any]) -> dict[str, Any]:
    """What the curves show at a step that was left out, or at a spike."""
    if event["kind"] == "skipped":
        return {"kind": "skipped", "step": event["step"], "label": f"step {event['step']:,} skipped: not finite"}
    label = f"spike at step {event['step']:,}: {_words(event.get('loss'))} (usual: {_words(event.get('usual'))})"
    return {"kind": "spike", "step": event["step"], "label": label}


def header(
    folder: Path, lines: Sequence[dict[str, Any]], processes: Sequence[Attempt], configuration: dict[str, Any]
) -> str:
    """Name, state and main figures of the run."""
    steps = lines[-1]["step"] if lines else 0
    asked = _inner(configuration, "trainer", "max_steps")
    state, look = _ended(processes[-1]) if processes else ("nothing done yet", "open")
    if processes and processes[-1].start is None and steps == asked:  # begun before there was a journal of events
        state, look = "finished", "finished"
    scores = [(line["val/loss"], line["step"]) for line in lines if _is_finite(line.get("val/loss"))]
    facts = {
        "steps": f"{steps:,}" + (f" of {asked:,}" if isinstance(asked, int) and asked > 0 else ""),
        "tokens": f"{lines[-1]['tokens']:,}" if lines else "0",
        "time at work": _duration(sum(process.seconds for process in processes)),
        "attempts": str(len(processes)),
        "best validation loss": "{:.4f} at step {:,}".format(*min(scores)) if scores else "none yet",
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return (
        f"<h1>{_text(folder.resolve().name)}</h1><p class='state {look}'>{_text(state)}</p><dl class=facts>{tiles}</dl>"
    )


def _ended(process: Attempt, is_last: bool = True) -> tuple[str, str]:
    """How a process ended, in words, and as what it is shown."""
    if process.end is None:
        return f"no end recorded: killed{', failed, or still at work' if is_last else ' or failed'}", "open"
    if process.end["kind"] == "end":
        return "finished", "finished"
    saved = "" if process.end.get("saved", True) else ", not saved"
    return f"stopped by {_words(process.end.get('signal'))} at step {process.end['step']:,}{saved}", "open"


def notes_box(notes: Sequence[str]) -> str:
    """What is missing or damaged."""
    return f"<ul class=notes>{''.join(f'<li>{_text(note)}</li>' for note in notes)}</ul>" if notes else ""


CONTROLS = """<h2>Curves</h2>
<div class=controls>
<label>x: <select id=axis><option value=steps>steps</option><option value=tokens>tokens</option></select></label>
<label><input type=checkbox id=log> logarithmic y (losses, gradient norm)</label>
<span class="key quiet"><svg viewBox="0 0 14 14"><path class=resume d="M7,0V14"/></svg>attempt begins</span>
<span class="key quiet"><svg viewBox="0 0 14 14"><path class=skipped d="M2,11H12L7,2Z"/></svg>skipped</span>
<span class="key quiet"><svg viewBox="0 0 14 14"><path class=spike d="M2,3H12L7,12Z"/></svg>spike</span>
</div>
<div id=charts></div>"""


def samples_table(rows: Sequence[dict[str, Any]]) -> str:
    """The samples side by side: a row a prompt, a column a validation."""
    title = "<h2>Samples over time</h2>"
    if not rows:
        return f"{title}<p class=quiet>No samples.</p>"
    steps = sorted({row["step"] for row in rows})
    every = math.ceil(len(steps) / _SHOWN_VALIDATIONS)
    shown = sorted({*steps[::every], steps[-1]})
    cells = {(row["prompt"], row["step"]): row["completion"] for row in rows}
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    head = "".join(f"<th scope=col>step {step:,}</th>" for step in shown)
    body = "".join(
        f"<tr><th scope=row><div class=text dir=auto>{_text(prompt) or '<i>(no text)</i>'}</div></th>"
        + "".join(f"<td><div class=text dir=auto>{_text(cells.get((prompt, step), '–'))}</div></td>" for step in shown)
        + "</tr>"
        for prompt in prompts
    )
    left_out = f"; {len(shown):,} of {len(steps):,} validations, all are in {SAMPLES_FILE}" if every > 1 else ""
    return (
        f"{title}<p class=quiet>A row a prompt, a column a validation; the newest at the right{left_out}.</p>"
        f"<div class=scroll tabindex=0><table id=samples><thead><tr><th scope=col>prompt</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def attempts_table(processes: Sequence[Attempt]) -> str:
    """When each process began, from what, how far it came, how it ended, and what it was told otherwise."""
    rows = []
    for process in processes:
        start = process.start or {}
        is_first = process.resumed_step == 0 and not start.get("checkpoint")
        rows.append(
            [
                process.number if process.number is not None else "ended before its first line",
                _moment(start.get("time")),
                "the beginning" if is_first else start.get("checkpoint") or f"step {process.resumed_step:,}",
                f"{process.resumed_step:,} to {process.last_step:,}" if process.last_step is not None else "",
                _duration(process.seconds),
                _ended(process, process is processes[-1])[0],
                _changed(process),
            ]
        )
    head = ("attempt", "began (UTC)", "from", "steps", "time", "how it ended", "settings changed")
    return "<h2>Attempts</h2>" + _table(head, rows, "No attempt has written anything yet.")


def _changed(process: Attempt) -> str:
    changed = (process.start or {}).get("changed")
    if not isinstance(changed, dict):
        return ""
    return "; ".join(
        f"{key} {_words(value[0])} → {_words(value[1])}" if isinstance(value, list) and len(value) == 2 else key
        for key, value in changed.items()
    )


def events_table(events: Sequence[dict[str, Any]]) -> str:
    """Steps left out and spikes, with their documents."""
    rows = []
    for event in events[:SHOWN_EVENTS]:
        is_skipped = event["kind"] == "skipped"
        what = "not finite, step skipped" if is_skipped else event_mark(event)["label"]
        sequences = event.get("sequences" if is_skipped else "worst")
        rows.append([f"{event['step']:,}", what, _sequences(sequences if isinstance(sequences, list) else [])])
    left_out = f"<p class=quiet>The first {len(rows):,} of {len(events):,}.</p>" if len(events) > len(rows) else ""
    table = _table(("step", "what", "sequences and their documents"), rows, "None.", wide=2)
    return f"<h2>Skipped steps and spikes</h2>{left_out}{table}"


def _sequences(entries: list[Any]) -> str:
    """One line a sequence."""
    lines = []
    for entry in entries[:_SHOWN_SEQUENCES]:
        documents = _inner(entry, "documents")
        named = [_document(document) for document in documents] if isinstance(documents, list) else []
        more = f" and {len(named) - _SHOWN_DOCUMENTS:,} more" if len(named) > _SHOWN_DOCUMENTS else ""
        loss, text = _inner(entry, "loss"), _inner(entry, "text")
        lines.append(
            f"{_words(_inner(entry, 'sequence'))}{f', loss {_words(loss)}' if loss is not None else ''}: "
            f"{', '.join(named[:_SHOWN_DOCUMENTS])}{more}"
        )
        if isinstance(text, str):
            lines.append(f"“{' '.join(text.split())[:_SHOWN_CHARACTERS]}”")
    if len(entries) > _SHOWN_SEQUENCES:
        lines.append(f"and {len(entries) - _SHOWN_SEQUENCES:,} more sequences in events.jsonl")
    return "\n".join(lines)


def _document(document: Any) -> str:
    named = [_words(_inner(document, key)) for key in ("source", "document") if _inner(document, key) is not None]
    return " ".join(named) or _words(document)


def corpus_card(folder: Path, configuration: dict[str, Any]) -> str:
    """What the run was trained on, a row a source."""
    title = "<h2>Corpus</h2>"
    try:
        card, origin = _find_card(folder, configuration)
    except UserError as error:
        return f"{title}<p class=quiet>No card: {_text(error)}</p>"
    sources = card.get("sources") if isinstance(card, dict) else None
    sources = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    splits = [s for s in ("train", "val", "test") if any(_inner(source, "tokens", s) for source in sources)]
    head = ["source", "documents", *(f"{split} tokens" for split in splits), "asked", "achieved", "repeated"]
    head += ["dropped", "licence", "address", "revision"]
    rows = [
        [
            source.get("name"),
            _total(source.get("documents")),
            *(_count(_inner(source, "tokens", split)) for split in splits),
            _share(source.get("asked_share")),
            _share(source.get("achieved_share")),
            f"{source['repetitions']:.2f} x" if _is_finite(source.get("repetitions")) else "",
            ", ".join(f"{_count(n)} {why}" for why, n in (source.get("dropped") or {}).items()) or "none",
            source.get("licence") or "not known",
            source.get("uri"),
            source.get("revision") or "",
        ]
        for source in sources
    ]
    return f"{title}{_table(head, rows, 'The card names no source.')}<p class=quiet>From {_text(origin)}.</p>"


def _find_card(folder: Path, configuration: dict[str, Any]) -> tuple[Any, str]:
    """The corpus card out of the bins' manifest, else out of the newest checkpoint; and where it was found."""
    bins = _inner(configuration, "data", "folder")
    if isinstance(bins, str):
        path = Path(bins, "manifest.json")
        with suppress(OSError, ValueError, KeyError, TypeError):  # moved away, or damaged: the checkpoint has a copy
            return json.loads(path.read_text(encoding="utf-8"))["card"], str(path)
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise MissingFile("neither data.folder's manifest.json nor a checkpoint is there.")
    from scratchlm.model.checkpoint import read  # brings torch

    return read(checkpoints[-1]).card, checkpoints[-1].name


def configuration_text(folder: Path) -> str:
    """config.yaml as it stands there."""
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    shown = f"<details><summary>config.yaml</summary><pre>{_text(text)}</pre></details>"
    return "<h2>Configuration</h2>" + (shown if text else "<p class=quiet>No config.yaml.</p>")


def environment_table(processes: Sequence[Attempt]) -> str:
    """One row a fact; where a resumed process found another value, each in turn."""
    found: dict[str, list[str]] = {}
    for process in processes:
        environment = (process.start or {}).get("environment")
        for name, value in environment.items() if isinstance(environment, dict) else ():
            values = found.setdefault(str(name), [])
            if not values or values[-1] != _words(value):
                values.append(_words(value))
    rows = [[name, " → ".join(values)] for name, values in found.items()]
    return "<h2>Environment</h2>" + _table(("", ""), rows, "Not recorded.", wide=1)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], otherwise: str, wide: int | None = None) -> str:
    if not rows:
        return f"<p class=quiet>{otherwise}</p>"
    top = "<thead><tr>" + "".join(f"<th scope=col>{_text(name)}</th>" for name in head) + "</tr></thead>"
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=wide' if i == wide else ''}>{_text(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll tabindex=0><table>{top if any(head) else ''}<tbody>{body}</tbody></table></div>"


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))


def _words(value: Any) -> str:
    """Plain values of any shape, as a reader would have them in one cell."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " | ".join(_words(inner) for inner in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inner(mapping: Any, *keys: str) -> Any:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    return mapping


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> str:
    return f"{value:,}" if _is_finite(value) else _words(value or 0)


def _total(by_split: Any) -> str:
    return _count(sum(n for n in by_split.values() if _is_finite(n))) if isinstance(by_split, dict) else ""


def _share(value: Any) -> str:
    return f"{value:.1%}" if _is_finite(value) else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _moment(seconds: Any) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
