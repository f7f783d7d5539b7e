"""Lines that are sentences, out of web pages, by the rules made for C4."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scratchlm.text.batch import DocumentStep, Drop

_END_MARKS = (".", "?", "!", '"', "'", "”", "’")
_ELLIPSES = ("...", "…")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]]*(?:\s|$)")
_NOTICES = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


@dataclass(frozen=True)
class C4(DocumentStep):
    """Keeps the lines that are sentences, and drops documents with few of them, with code or with placeholder text.

    A line goes that has no end mark (or ends in an ellipsis), too few words, a word beyond any length, or a notice on
    JavaScript, cookies, privacy or terms of use; empty lines go with them, so paragraphs end in one newline. The list
    of bad words, which the paper uses too, is left out.

    Attributes:
        min_sentences: Documents that are left with fewer go.
        min_line_words: Lines with fewer words go. The paper's first version and datatrove have 5 sentences and 3 words,
            the code that made the released C4 has 3 sentences and 5 words.
        max_word_characters: Lines with a longer word go.
        need_end_mark: Whether lines without . ? ! or a closing quotation mark go. FineWeb went without this rule.
        remove_citations: Whether [1], [edit] and [citation needed] are taken out.
        drop_curly_brackets: Whether documents with { in a line that would be kept go.
        drop_lorem_ipsum: The same for "lorem ipsum".

    Source:
        Raffel et al. 2020, Exploring the Limits of Transfer Learning (T5), section 2.2,
        https://arxiv.org/abs/1910.10683; tensorflow_datasets/text/c4_utils.py for the rules on words, citations and
        notices.
    """

    min_sentences: int = 5
    min_line_words: int = 3
    max_word_characters: int = 1000
    need_end_mark: bool = True
    remove_citations: bool = True
    drop_curly_brackets: bool = True
    drop_lorem_ipsum: bool = True

    def faults(self) -> Iterator[str]:
        """Limits that mean nothing."""
        for name in ("min_sentences", "min_line_words"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} is negative. Give 0 or more."
        if self.max_word_characters < 1:
            yield f"max_word_characters={self.max_word_characters} lets nothing through. Raise it."

    def judge(self, text: str) -> str | Drop | None:
        """The lines that stay, or why the document goes."""
        lower = text.lower()
        notices = [notice for notice in _NOTICES if notice in lower]
        has_lorem_ipsum = self.drop_lorem_ipsum and "lorem ipsum" in lower
        has_curly_bracket = self.drop_curly_brackets and "{" in text
        kept = []
        for found in text.split("\n"):
            line = self._kept(found)
            if line is None:
                continue
            if has_lorem_ipsum and "lorem ipsum" in line.lower():
                return Drop("lorem ipsum")
            if notices and any(notice in line.lower() for notice in notices):
                continue
            if has_curly_bracket and "{" in line:
                return Drop("curly bracket")
            kept.append(line)
        if not self._are_enough(kept):
            return Drop("too few sentences")
        left = "\n".join(kept)
        return left if left != text else None

    def _kept(self, line: str) -> str | None:
        """The line as it stays, if these rules let it."""
        line = line.strip()
        if len(line) > self.max_word_characters and max(map(len, line.split())) > self.max_word_characters:
            return None
        if self.remove_citations and "[" in line:
            line = _CITATION.sub("", line).strip()
        if self.need_end_mark and (not line.endswith(_END_MARKS) or line.endswith(_ELLIPSES)):
            return None
        return line if line and len(line.split(None, self.min_line_words)) >= self.min_line_words else None

    def _are_enough(self, lines: list[str]) -> bool:
        """Whether the lines have enough sentences, each at least one."""
        if len(lines) >= self.min_sentences:
            return True
        return sum(max(1, len(_SENTENCE_END.findall(line))) for line in lines) >= self.min_sentences
