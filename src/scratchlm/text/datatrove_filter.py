"""Any filter of the library datatrove, by its class path, as a step of the chain."""

import difflib
import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from scratchlm.errors import BadValue, MissingFile
from scratchlm.text.batch import Batch, Drop, Step, Verdicts

# Prose that gets past the first rules of most filters, so that what they need for the later ones is missed early.
_TRIAL = """The harbour was quiet when the two boats came in with the morning tide.
Nobody on the quay had expected them before noon, and the baker was still asleep.
An old man tied the ropes to the iron rings that have been there since his childhood.
They brought salt, lamp oil and a box of letters for the people of the island.
By evening every house had news to tell, and the boats were ready to be gone again.
"""


@dataclass(frozen=True)
class DatatroveFilter(Step):
    """Drops what a filter of datatrove drops, for its reason, and takes over the text that it leaves.

    The filter sees the document's text and id, no metadata. What it says of a document may not hang on the documents
    before it, so a filter that draws random numbers is refused. Needs `pip install 'scratchlm[datatrove]'`; some
    filters want more, and say what.

    Attributes:
        class_path: The class, as `datatrove.pipeline.filters.GopherQualityFilter`; one of your own that derives from
            datatrove's `BaseFilter` is as good.
        init_args: Its arguments.
    """

    class_path: str = ""
    init_args: dict[str, Any] = field(default_factory=dict)

    def faults(self) -> Iterator[str]:
        """No such class, arguments that it does not take, a filter that fails on a plain text."""
        try:
            self.open()
        except MissingFile:
            return  # said when documents are to be cleaned: training on what was prepared elsewhere needs no filter
        except BadValue as error:
            yield str(error).removeprefix(f"data.cleaning: {self.class_path}: ")

    def open(self) -> None:
        """Makes the filter, and tries it on a text.

        Raises:
            MissingFile: datatrove is not installed, or what the filter needs beside it.
            BadValue: There is no such filter, or it does not work.
        """
        self._judge(_TRIAL, "a trial text")

    def __call__(self, batch: Batch) -> Verdicts:
        """What the filter says of each document."""
        verdicts: Verdicts = {}
        for index, (text, id) in enumerate(zip(batch.texts, batch.ids, strict=True)):
            verdict = self._judge(text, id)
            if verdict is not None:
                verdicts[index] = verdict
        return verdicts

    def _judge(self, text: str, id: str) -> str | Drop | None:
        filter = self._filter
        document = import_module("datatrove.data").Document(text, id)
        try:
            result = filter.filter(document)
        except ImportError as error:
            raise self._missing(error) from None
        except Exception as error:
            raise self._bad(f"it failed on {id}: {type(error).__name__}: {error}") from error
        is_kept, reason = result if isinstance(result, tuple) else (result, None)
        if not is_kept:
            return Drop(str(reason or self.class_path.rpartition(".")[2]))
        return document.text if document.text != text else None

    @cached_property
    def _filter(self) -> Any:
        try:
            import_module("datatrove.pipeline.filters")
        except ModuleNotFoundError as error:
            needed = str(error.name).partition(".")[0]  # datatrove, or what it needs in turn and does not ask for
            raise MissingFile(
                f"data.cleaning: {self.class_path} needs {needed}, which is not installed. Run: pip install "
                "'scratchlm[datatrove]'"
            ) from None
        kind = self._class()
        try:
            made = kind(**self.init_args)
        except ImportError as error:
            raise self._missing(error) from None
        except Exception as error:
            raise self._bad(f"init_args={self.init_args} do not work: {type(error).__name__}: {error}") from None
        held = [getattr(value, "__self__", value) for value in vars(made).values()]
        draws = any(isinstance(value, np.random.Generator | random.Random) for value in held)
        if draws and getattr(made, "keep_fraction", 1) > 0:  # C4BadWordsFilter draws nothing at 0
            raise self._bad("it draws random numbers, so what it keeps would hang on the order. Leave it out.")
        return made

    def _class(self) -> Any:
        module, _, name = self.class_path.rpartition(".")
        try:
            there = vars(import_module(module))
        except ImportError:
            raise self._bad(f"there is no module {module}. Filters are in datatrove.pipeline.filters.") from None
        base = import_module("datatrove.pipeline.filters.base_filter").BaseFilter
        filters = [key for key, value in there.items() if inspect.isclass(value) and issubclass(value, base)]
        if name not in filters:
            near = difflib.get_close_matches(name, filters, n=1, cutoff=0.5)
            what = "is no filter of datatrove's kind" if name in there else "is not there"
            raise self._bad(f"{name} {what}." + (f" Did you mean {near[0]}?" if near else ""))
        takes = inspect.signature(there[name]).parameters
        for key in self.init_args:
            if key not in takes:
                near = difflib.get_close_matches(key, takes, n=1, cutoff=0.5)
                did_you_mean = f" Did you mean {near[0]}?" if near else ""
                raise self._bad(f"no argument {key!r}.{did_you_mean} There are: {', '.join(takes)}.")
        return there[name]

    def _bad(self, why: str) -> BadValue:
        return BadValue(f"data.cleaning: {self.class_path}: {_in_one_line(why)}")

    def _missing(self, error: ImportError) -> MissingFile:
        return MissingFile(f"data.cleaning: {self.class_path}: {_in_one_line(str(error))}")

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: the filter is made anew there."""
        return {"class_path": self.class_path, "init_args": self.init_args}


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:500]
