"""Documents that are no prose, by the rules made for Gopher: lists, tables, symbols, headlines, cut-off previews."""

import string
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from scratchlm.text.batch import Batch, Drop, Positions, Step, Verdicts
from scratchlm.text.words import Words

_BULLETS = ("•", "‣", "◦", "▪", "*", "-")
_ELLIPSES = ("...", "…")
_IS_ASCII_LETTER = np.array([byte < 128 and chr(byte).isalpha() for byte in range(256)])
_PUNCTUATION = string.punctuation + "“”‘’„«»–—…"
_FIRST_WORDS = 200  # where stop words are looked for first


@dataclass(frozen=True)
class GopherQuality(Step):
    """Drops documents that do not look like prose; words are what white space separates. Null turns a rule off.

    Attributes:
        min_words: Fewer words go.
        max_words: More words go.
        min_mean_word_characters: A smaller mean length of words goes, punctuation included.
        max_mean_word_characters: A larger one goes.
        max_symbols_per_word: Largest number of hash signs a word, and of ellipses a word.
        max_bullet_lines: Largest share of the lines that may begin with a bullet (• ‣ ◦ ▪ * -); empty ones do not
            count.
        max_ellipsis_lines: Largest share of the lines that may end with an ellipsis.
        min_alphabetic_words: Smallest share of the words with at least one letter.
        min_stop_words: Fewer different words of `stop_words` go.
        stop_words: Words that every prose of the language has; in lower case.

    Source:
        Rae et al. 2021, Scaling Language Models (Gopher), appendix A.1.1, quality filtering (all thresholds and the
        stop words), https://arxiv.org/abs/2112.11446.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_characters: float | None = 3.0
    max_mean_word_characters: float | None = 10.0
    max_symbols_per_word: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic_words: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])

    def faults(self) -> Iterator[str]:
        """Limits that leave nothing, shares that are none, stop words that no text can have."""
        for low, high in (("min_words", "max_words"), ("min_mean_word_characters", "max_mean_word_characters")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and least < 0:
                yield f"{low}={least} is negative. Give 0 or more."
            if most is not None and most < max(1, least or 0):
                yield f"{high}={most} lets nothing through. Raise it, or set it to null."
        if self.max_symbols_per_word is not None and self.max_symbols_per_word < 0:
            yield f"max_symbols_per_word={self.max_symbols_per_word} is negative. Give 0 or more."
        for name in ("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                yield f"{name}={share} is no share. Give 0 to 1."
        if odd := [word for word in self.stop_words if word != _bare(word) or len(word.split()) != 1]:
            yield f"stop_words={odd} are not single words in lower case without punctuation around. Write them so."
        if self.min_stop_words is not None and not 0 <= self.min_stop_words <= len(set(self.stop_words)):
            yield f"min_stop_words={self.min_stop_words} of {len(set(self.stop_words))} stop words cannot be. Lower it."

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents that break a rule; the reason is the first rule of the list that they break."""
        words = Words.of(batch)
        n_words = words.per_document.tolist()
        n_word_bytes = words.totals(words.ends - words.starts).tolist()
        n_with_letter = words.totals(_have_ascii_letter(batch, words)).tolist()
        verdicts: Verdicts = {}
        for index, (text, data) in enumerate(zip(batch.texts, batch.utf8, strict=True)):
            n_characters = len(text) - (len(data) - n_word_bytes[index])  # less white space
            reason = self._judge_lengths(n_words[index], n_characters)
            reason = reason or self._judge_symbols(text, n_words[index])
            reason = reason or self._judge_words(text, data, n_words[index], n_with_letter[index])
            if reason:
                verdicts[index] = Drop(reason)
        return verdicts

    def _judge_lengths(self, n_words: int, n_characters: int) -> str | None:
        if self.min_words is not None and n_words < self.min_words:
            return "too few words"
        if self.max_words is not None and n_words > self.max_words:
            return "too many words"
        if not n_words:
            return "no words"
        if self.min_mean_word_characters is not None and n_characters < self.min_mean_word_characters * n_words:
            return "short words"
        if self.max_mean_word_characters is not None and n_characters > self.max_mean_word_characters * n_words:
            return "long words"
        return None

    def _judge_symbols(self, text: str, n_words: int) -> str | None:
        n_ellipses = sum(map(text.count, _ELLIPSES))
        if self.max_symbols_per_word is not None:
            if text.count("#") > self.max_symbols_per_word * n_words:
                return "hash signs to words"
            if n_ellipses > self.max_symbols_per_word * n_words:
                return "ellipses to words"
        lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
        if self.max_bullet_lines is not None:
            n_bullets = sum(line.startswith(_BULLETS) for line in lines)
            if n_bullets > self.max_bullet_lines * len(lines):
                return "bullet lines"
        if self.max_ellipsis_lines is not None and n_ellipses:
            n_cut_off = sum(line.endswith(_ELLIPSES) for line in lines)
            if n_cut_off > self.max_ellipsis_lines * len(lines):
                return "lines cut off"
        return None

    def _judge_words(self, text: str, data: bytes, n_words: int, n_with_ascii_letter: int) -> str | None:
        least = self.min_alphabetic_words
        # Letters beyond ASCII are looked for only where they decide: 5 of 7,000 English web pages.
        if least is not None and n_with_ascii_letter < least * n_words and _count_alphabetic(data) < least * n_words:
            return "words without letters"
        if self.min_stop_words:
            stop_words = set(self.stop_words)
            if len(stop_words.intersection(text.split(None, _FIRST_WORDS)[:_FIRST_WORDS])) >= self.min_stop_words:
                return None
            if len(stop_words.intersection(map(_bare, text.split()))) < self.min_stop_words:
                return "too few stop words"
        return None


def _have_ascii_letter(batch: Batch, words: Words) -> Positions:
    """1 for each word with a letter of ASCII, else 0."""
    found = np.empty(len(words.starts), np.intp)
    for some, start, data in words.pieces(batch):
        before = np.concatenate(([0], np.cumsum(_IS_ASCII_LETTER[data], dtype=np.int32)))
        found[some] = before[words.ends[some] - start] > before[words.starts[some] - start]
    return found


def _count_alphabetic(data: bytes) -> int:
    return sum(any(map(str.isalpha, word.decode())) for word in data.split())


def _bare(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip(_PUNCTUATION).lower()
