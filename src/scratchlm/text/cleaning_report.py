"""What each step of cleaning did: counts, speed, and a few examples of what went."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scratchlm.text.batch import Batch, Drop, Verdicts

_MAX_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 160


@dataclass
class StepReport:
    """What one step did.

    Attributes:
        name: The step.
        documents: Documents that came in.
        bytes: Their UTF-8 bytes.
        changed: Documents that it gave another text.
        dropped: Documents that it dropped, by reason.
        examples: Of the first documents it dropped, the id, the reason and the beginning of the text.
        seconds: Time spent, and `timed_bytes` the text that it was spent on: neither is kept in a file.
        timed_bytes: See `seconds`.
    """

    name: str
    documents: int = 0
    bytes: int = 0
    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    timed_bytes: int = 0

    def add(self, batch: Batch, verdicts: Verdicts, seconds: float) -> None:
        """Books what the step said of a batch, and how long that took."""
        self.documents += len(batch.texts)
        self.bytes += batch.n_bytes
        self.timed_bytes += batch.n_bytes
        self.seconds += seconds
        for index in sorted(verdicts):
            verdict = verdicts[index]
            if not isinstance(verdict, Drop):
                self.changed += 1
                continue
            self.dropped[verdict.reason] += 1
            if len(self.examples) < _MAX_EXAMPLES:
                start = " ".join(batch.texts[index][: 4 * _EXAMPLE_CHARACTERS].split())[:_EXAMPLE_CHARACTERS]
                self.examples.append({"id": batch.ids[index], "reason": verdict.reason, "text": start})

    def merge(self, later: "StepReport") -> None:
        """Adds what the same step did to documents that come after these."""
        assert self.name == later.name
        self.documents += later.documents
        self.bytes += later.bytes
        self.changed += later.changed
        self.dropped += later.dropped
        self.examples += later.examples[: _MAX_EXAMPLES - len(self.examples)]
        self.seconds += later.seconds
        self.timed_bytes += later.timed_bytes

    @property
    def n_dropped(self) -> int:
        """Documents that it dropped."""
        return self.dropped.total()

    @property
    def megabytes_per_second(self) -> float | None:
        """Speed on one core; None where no time was taken."""
        return self.timed_bytes / self.seconds / 1e6 if self.seconds else None


class Report:
    """What each step of a chain did, in the chain's order, and last what was left empty."""

    def __init__(self, steps: Iterable[StepReport]) -> None:
        """Takes the steps as they are."""
        self.steps = list(steps)

    def merge(self, later: "Report") -> None:
        """Adds the report of the same chain on documents that come after these: counts add up, first examples stay."""
        for step, other in zip(self.steps, later.steps, strict=True):
            step.merge(other)

    @property
    def dropped(self) -> dict[str, int]:
        """Documents that went, by reason, over all steps."""
        return dict(sorted(sum((step.dropped for step in self.steps), Counter()).items()))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, the same for the same documents in every run: times are left out."""
        return [
            {
                "step": step.name,
                "documents": step.documents,
                "bytes": step.bytes,
                "changed": step.changed,
                "dropped": dict(sorted(step.dropped.items())),
                "examples": [dict(example) for example in step.examples],
            }
            for step in self.steps
        ]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> "Report":
        """The report that `to_json` wrote, with no time spent yet."""
        return cls(
            StepReport(
                value["step"],
                value["documents"],
                value["bytes"],
                value["changed"],
                Counter(value["dropped"]),
                [dict(example) for example in value["examples"]],
            )
            for value in values
        )

    def table(self) -> str:
        """One row a step, for the terminal; the last only where some documents were left empty."""
        head = ("cleaning", "documents in", "dropped", "changed", "MB/s")
        rows = [head]
        for step in self.steps if self.steps[-1].n_dropped else self.steps[:-1]:
            speed = step.megabytes_per_second
            shown = f"{speed:,.0f}" if speed is not None and speed < 10_000 else "-"
            rows.append((step.name, f"{step.documents:,}", f"{step.n_dropped:,}", f"{step.changed:,}", shown))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        )

    def examples(self) -> str:
        """A line for each kept example of what a step dropped."""
        return "\n".join(
            f"{step.name} dropped {example['id']} ({example['reason']}): {example['text']!r}"
            for step in self.steps
            for example in step.examples
        )
