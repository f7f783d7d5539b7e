"""From a document as it was found to the document that is kept, or to the reason why it is not."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from time import perf_counter
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import xxhash

from scratchlm.errors import BadValue
from scratchlm.text.addresses import MaskPii
from scratchlm.text.batch import SLICE_BYTES, Batch, Drop, Step, Verdicts
from scratchlm.text.c4 import C4
from scratchlm.text.cleaning_report import Report, StepReport
from scratchlm.text.datatrove_filter import DatatroveFilter
from scratchlm.text.filters import Length
from scratchlm.text.language import Language
from scratchlm.text.normal import Unicode, Whitespace
from scratchlm.text.quality import GopherQuality
from scratchlm.text.repetition import GopherRepetition

STEPS: dict[str, type[Step]] = {
    "unicode": Unicode,
    "whitespace": Whitespace,
    "length": Length,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "language": Language,
    "mask_pii": MaskPii,
}
DEFAULT = ("unicode", "whitespace", "length")


class Cleaner:
    """Takes documents through a chain of steps and keeps account of each step.

    Attributes:
        report: What each step did so far.
    """

    def __init__(self, steps: list[dict[str, Any]], whole_files: bool = False) -> None:
        """Loads what the steps need.

        Args:
            steps: What `parse_cleaning` returns.
            whole_files: Whether the documents are whole text files, whose length has no maximum.

        Raises:
            UserError: A step needs a library that is not installed.
        """
        self._steps = [_step(name, arguments) for step in steps for name, arguments in step.items()]
        if whole_files:
            self._steps = [replace(s, max_characters=None) if isinstance(s, Length) else s for s in self._steps]
        for step in self._steps:
            step.open()
        self.report = Report(StepReport(_label(name)) for step in [*steps, {"empty": {}}] for name in step)

    def clean(self, text: str, id: str = "") -> str | None:
        """The document to keep, or None for one that is dropped."""
        kept = self._clean(Batch.of([text], [id])).texts
        return kept[0] if kept else None

    def clean_many(self, texts: Sequence[str], ids: Sequence[str]) -> Batch:
        """The documents to keep, in their order; many at once take half the time of each alone, or less."""
        kept = Batch([], [], [])
        for start, end in _pieces(texts):
            batch = self._clean(Batch.of(list(texts[start:end]), list(ids[start:end])))
            kept.texts += batch.texts
            kept.utf8 += batch.utf8
            kept.ids += batch.ids
        return kept

    def _clean(self, batch: Batch) -> Batch:
        steps: list[Callable[[Batch], Verdicts]] = [*self._steps, _drop_empty]
        for step, report in zip(steps, self.report.steps, strict=True):
            start = perf_counter()
            verdicts = step(batch)
            report.add(batch, verdicts, perf_counter() - start)
            batch = batch.after(verdicts)
        return batch


def _drop_empty(batch: Batch) -> Verdicts:
    return {} if all(batch.texts) else {i: Drop("empty") for i, text in enumerate(batch.texts) if not text}


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where to cut so that a piece has about `SLICE_BYTES`."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= SLICE_BYTES:
            yield start, end
            start, size = end, 0
    if start < len(texts):
        yield start, len(texts)


def parse_cleaning(spec: list[Any] | None) -> list[dict[str, Any]]:
    """Reads and checks `data.cleaning`.

    Args:
        spec: The steps in their order, each a name (`whitespace`), a name with arguments (`{length: {min_characters:
            200}}`), or a class path of datatrove's with its arguments (`{class_path:
            datatrove.pipeline.filters.RegexFilter, init_args: {...}}`). None: `unicode`, `whitespace`, `length`.
            The others, on request: `gopher_quality`, `gopher_repetition`, `c4`, `language`, `mask_pii`.

    Returns:
        `{name: arguments}` for each step, every argument of ours filled in: plain values, the same when parsed again.

    Raises:
        BadValue: Something cannot work; one line for each fault of each step.
    """
    if spec is None:
        spec = list(DEFAULT)
    if not isinstance(spec, list):
        raise BadValue(f"data.cleaning: {spec!r} is no list of steps. Write [{', '.join(DEFAULT)}].")
    faults: list[str] = []
    parsed: list[dict[str, Any]] = []
    for number, step in enumerate(spec, 1):
        found: list[str] = []
        name, arguments = _name_and_arguments(step, found)
        if not found:
            arguments = _arguments(name, arguments, found)
        faults += [f"data.cleaning: step {number}, {name}: {fault}" for fault in found]
        parsed.append({name: arguments})
    if faults:
        raise BadValue("\n".join(faults))
    return parsed


def _name_and_arguments(step: Any, faults: list[str]) -> tuple[str, dict[str, Any]]:
    arguments: Any = {}
    if (
        isinstance(step, dict)
        and isinstance(step.get("class_path"), str)
        and step.keys() <= {"class_path", "init_args"}
    ):
        step, arguments = step["class_path"], step.get("init_args")
    elif isinstance(step, dict) and len(step) == 1:
        [(step, arguments)] = step.items()
    if not isinstance(step, str):
        faults.append("this is no step. Write a name, or {name: {argument: value}}.")
        return repr(step), {}
    if arguments is not None and not (isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)):
        faults.append(f"{arguments!r} are no arguments. Write {{{step}: {{argument: value}}}}.")
        return step, {}
    return step, arguments or {}


def _arguments(name: str, given: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """All arguments of a step, those not given at their default (but a datatrove filter's stay as given)."""
    if "." in name:
        faults += DatatroveFilter(name, given).faults()
        return given
    if name not in STEPS:
        faults.append(f"there is no such step.{_near(name, STEPS)} The steps are: {', '.join(STEPS)}.")
        return given
    hints = get_type_hints(STEPS[name])
    defaults = asdict(STEPS[name]())
    for key in given:
        if key not in defaults:
            there = f"There are: {', '.join(defaults)}." if defaults else "It takes none."
            faults.append(f"no argument {key!r}.{_near(key, defaults)} {there}")
        elif not _fits(given[key], hints[key]):
            faults.append(f"{key}={given[key]!r} does not fit. Give {_in_words(hints[key])}.")
    if faults:
        return given
    arguments = {key: _as(given.get(key, default), hints[key]) for key, default in defaults.items()}
    faults += STEPS[name](**arguments).faults()
    return arguments


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _as(value: Any, hint: Any) -> Any:
    """The value in one spelling: 1 becomes 1.0 where a number is meant."""
    if isinstance(hint, UnionType) and value is not None:
        return _as(value, get_args(hint)[0])
    if get_origin(hint) is list:
        return [_as(item, get_args(hint)[0]) for item in value]
    return float(value) if hint is float else value


def _in_words(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(map(_in_words, get_args(hint)))
    if get_origin(hint) is list:
        return f"a list, each {_in_words(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}[hint]


def _step(name: str, arguments: dict[str, Any]) -> Step:
    return DatatroveFilter(name, arguments) if "." in name else STEPS[name](**arguments)


def _label(name: str) -> str:
    return name.rpartition(".")[2]


def content_hash(text: str | bytes) -> int:
    """64 bits that stand for a document's content, the same on every machine: XXH3 of its UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
