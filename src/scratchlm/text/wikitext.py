"""WikiText's lines back to articles that read as they were written.

WikiText comes one line a row, its words and punctuation set apart by blanks, `@-@` for a hyphen inside a word and
headings between equals signs. A row taken for a document would make a document of each heading.
"""

import re
from collections.abc import Iterable, Iterator

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


def articles(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Joins lines of WikiText to articles and undoes the tokenisation.

    A title is a line ` = Title = ` with blank lines around it; ` = = Section = = ` is a heading inside the article.

    Args:
        lines: The lines in their order, blank ones included.

    Yields:
        (title, text). The text begins with the title; headings and paragraphs are set apart by blank lines. Lines
        before the first title are an article without one.
    """
    title: str = ""
    body: list[str] = []
    held: str | None = None  # a line that is a title if a blank line follows
    before = ""
    for line in lines:
        line = line.strip()
        if held is not None:
            if not line:
                if body:
                    yield title, _article(body)
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
        yield title, _article(body)


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
