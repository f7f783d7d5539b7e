"""WikiText's lines back to articles that read as they were written.

WikiText comes one line a row, its words and punctuation set apart by blanks, `@-@` for a hyphen inside a word and
headings between equals signs. A row taken for a document would make a document of each heading.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from scratchlm.text.parts import Chunk, Part, State

_TITLE = re.compile(r"= (?!= )(.+)(?<! =) =")
_HEADING = re.compile(r"(?:= )+(.+?)(?: =)+")
_SHORT_LINE = 80  # characters; neighbours both below this are list items, credits or verse (chosen, not tuned)
_SHORT_QUOTATION = 40  # characters; see `_with_single_quotes` (chosen, not tuned)

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# (needed in the text, pattern, replacement). Every pattern begins with plain characters, which are searched for fast;
# a look-behind after them comes cheap. A pattern runs only where a rare character of it is in the text.
_PATTERNS = tuple(
    (needed, re.compile(pattern), to)
    for needed, pattern, to in (
        ("'", r" '(?=[^\W\d_])", "'"),
        ("’", r" ’ (?=(?:s|t|m|d|re|ll|ve)\b)", "’"),
        ("–", rf" – (?<=\d – )(?=\d)(?!\d\d? (?:{_MONTHS}))", "–"),
        (" : ", r" : (?<=\d : )(?=\d\d\b)", ":"),
        ("°", r" ° (?<=\d ° )(?=[CF]\b)", " °"),
        ("°", r" ° (?<=\d ° )", "° "),
        ("[", r" \[ ([A-Za-z]) \] (?=[a-z])", r" [\1]"),
        ("&", r" & (?<=\b[A-Z] & )(?=[A-Z]\b)", "&"),
        ("$", r" (?<=\b(?:US|AU|CA|NZ|HK) )\$ (?=\d)", "$"),
    )
)
_JOINS = (
    ("@", " @-@ ", "-"),
    ("@", " @,@ ", ","),
    ("@", " @.@ ", "."),
    ("‑", " ‑ ", "‑"),
    ("/", " / ", "/"),
    ("⁄", " ⁄ ", "⁄"),
)
# A full stop can also begin a word, such as "...".
_BLANK_BEFORE = re.compile(r""" (?=[)\],;!?%”′″♭♯’]|[.:] |\.['")\]”])""")
_BLANK_AFTER = re.compile(r" (?<=[(\[$£€“‘] )")
_DECADE = re.compile(r" ' (?=\d0s\b)")


class Articles:
    """The articles in the lines of WikiText that some parts hold, which keep their order: an article may begin in one
    file and end in the next. The id of an article is its title.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Opens nothing before it is read.

        Args:
            parts: Their rows are lines, blank ones included.
        """
        self.parts = list(parts)
        self.label = "articles"

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """An article at a time; the state is [number of the part, its own state, lines to skip behind that]."""
        # Where each chunk of lines began that the article in hand may begin in: (number of its first line, state).
        chunks: deque[tuple[int, list[Any]]] = deque()
        for title, text, n_lines in articles(self._lines(state or [0, None, 0], chunks)):
            while len(chunks) > 1 and chunks[1][0] <= n_lines:
                chunks.popleft()
            first, (part, inner, skip) = chunks[0]
            yield Chunk([(text, title)], [part, inner, skip + n_lines - first])

    def _lines(self, state: list[Any], chunks: deque[tuple[int, list[Any]]]) -> Iterator[str]:
        first, inner, skip = state
        n_lines = 0
        for number in range(first, len(self.parts)):
            for chunk in self.parts[number].read(inner):
                chunks.append((n_lines, [number, inner, skip]))
                for line, _ in chunk.rows[skip:]:
                    n_lines += 1
                    yield line
                inner, skip = chunk.state, max(0, skip - len(chunk.rows))
            inner = None
        chunks.append((n_lines, [len(self.parts), None, 0]))


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """Joins lines of WikiText to articles and undoes the tokenisation.

    A title is a line ` = Title = ` with blank lines around it; ` = = Section = = ` is a heading inside the article.

    Args:
        lines: The lines in their order, blank ones included.

    Yields:
        (title, text, lines before the next article). The text begins with the title; headings and paragraphs are set
        apart by blank lines. Lines before the first title are an article without one.
    """
    title: str = ""
    body: list[str] = []
    held: str | None = None  # a line that is a title if a blank line follows
    before = ""
    number = -1
    for number, line in enumerate(lines):
        line = line.strip()
        if held is not None:
            if not line:
                if body:
                    yield title, _article(body), number - 1
                title, body = _plain(f" {held[2:-2]} ").strip(), []
            body.append(held)
            held = None
        if not before and line.startswith("= ") and _TITLE.fullmatch(line):
            held = line
        elif line:
            body.append(line)
        before = line
    if held is not None:
        body.append(held)
    if body:
        yield title, _article(body), number + 1


def _article(lines: list[str]) -> str:
    pieces: list[str] = []
    short_before = False
    for line in lines:
        heading = _HEADING.fullmatch(line) if line.startswith("= ") else None
        short = len(line) < _SHORT_LINE and not heading
        pieces.append("\n" if short and short_before else "\n\n")
        line = f" {heading[1] if heading else line} "
        pieces.append(_with_double_quotes(line) if '"' in line else line)
        short_before = short
    return _plain("".join(pieces)).replace(" \n", "\n").replace("\n ", "\n").strip()


def _plain(text: str) -> str:
    for needed, pattern, to in _PATTERNS:
        if needed in text:
            text = pattern.sub(to, text)
    if " ' " in text:
        text = "\n".join(_with_single_quotes(line) if " ' " in line else line for line in text.split("\n"))
    for needed, old, new in _JOINS:
        if needed in text:
            text = text.replace(old, new)
    return _BLANK_AFTER.sub("", _BLANK_BEFORE.sub("", text))


def _with_double_quotes(line: str) -> str:
    """Opening and closing quotation marks take turns within a paragraph; one before a comma always closes."""
    first, *rest = line.split(' "')
    done, is_open = [first], False
    for piece in rest:
        if is_open or piece[:3] in (" , ", " . ", " ; ", " ) "):
            done.append(f'"{piece}')
            is_open = False
        else:
            done.append(f' "{piece[1:]}')
            is_open = True
    return "".join(done)


def _with_single_quotes(line: str) -> str:
    """Tells quotation marks from apostrophes after a plural (`the archers ' arrows`) by what can still pair up."""
    first, *rest = _DECADE.sub(" '", line).split(" ' ")
    done, before, is_open = [first], first, False
    for n_after, piece in zip(range(len(rest) - 1, -1, -1), rest, strict=True):
        if before.endswith("s"):
            far = len(piece) > _SHORT_QUOTATION
            possessive = n_after % 2 == 1 if is_open else n_after % 2 == 0 or far
        else:
            possessive = n_after == 0 and not is_open
        if possessive or is_open:
            done.append(f"' {piece}")
            is_open = is_open and possessive
        else:
            done.append(f" '{piece}")
            is_open = True
        before = piece
    return "".join(done)
