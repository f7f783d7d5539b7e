"""What happened to a run, beside its numbers: starts, stops, steps left out, spikes. One journal, one line each."""

import time
from pathlib import Path
from typing import Any, Literal

from scratchlm.files.journal import Journal, read_journal

EVENTS_FILE = "events.jsonl"

Kind = Literal["start", "passed_over", "stop", "skipped", "spike", "end"]


class Events:
    """Appends to events.jsonl in the run folder; only on the first process."""

    def __init__(self, folder: str | Path) -> None:
        """Remembers where the lines go; nothing is opened before the first.

        Args:
            folder: The run folder.
        """
        self._journal = Journal(Path(folder) / EVENTS_FILE)

    def add(self, kind: Kind, step: int, **facts: Any) -> None:
        """Appends one event.

        Args:
            kind: What happened. `start`: a process began or went on (`checkpoint`, `changed`, `environment`).
                `passed_over`: a damaged checkpoint (`file`, `why`). `stop`: by a signal (`signal`, `saved`).
                `skipped`: a step whose loss or gradient was no finite number (`sequences`). `spike`: a loss far above
                the usual (`loss`, `usual`, `worst`). `end`: the last step is done.
            step: Optimizer steps done when it happened; of `skipped` and `spike` the step itself.
            **facts: What else belongs to it: plain values.
        """
        from lightning.pytorch.utilities import rank_zero_only  # here, so that reading a run is quick

        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._journal.append({"kind": kind, "step": step, "time": time.time()} | facts)
            self._journal.close()


def read_events(run_folder: str | Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; none where there is no such file."""
    return read_journal(Path(run_folder) / EVENTS_FILE)
