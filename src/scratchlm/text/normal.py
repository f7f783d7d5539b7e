"""One spelling for text: composed Unicode without control characters, and white space that keeps paragraphs.

Both steps look through all documents of a batch at once for the bytes that could need a change, and touch only the
documents that have some: few web pages do.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scratchlm.text.batch import SEPARATOR, SLICE_BYTES, Batch, Positions, Step, Verdicts

Bytes = NDArray[np.uint8]

_TAB, _NEWLINE, _RETURN, _SPACE, _DELETE = b"\t\n\r \x7f"

_CONTROL = bytes(sorted({*range(_SPACE), _DELETE} - set(range(_TAB, _RETURN + 1))))
_HIGH_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")  # U+0080 to U+009F in UTF-8
_BYTE_ORDER_MARK = "\ufeff".encode()

_NEWLINES = bytes.maketrans(b"\r\x0b\x0c", b"\n\n\n")
_NOWHERE: Positions = np.empty(0, np.intp)
_DENSE = 1.05  # bytes a character beyond which each document is looked at, not each place (chosen, not tuned)
_INSIDE_WORD = re.compile(rb"[^\t\n ]{2}")


@dataclass(frozen=True)
class Unicode(Step):
    """Composes Unicode (NFC) and removes control characters and byte order marks; white space stays."""

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents that are spelled otherwise."""
        if batch.n_bytes > _DENSE * sum(map(len, batch.texts)):
            suspects: Iterable[int] = range(len(batch.texts))
        else:
            suspects = batch.documents_at([start + _odd_characters(data) for start, data in batch.slices()])
        verdicts: Verdicts = {}
        for index in suspects:
            text = _composed(batch.texts[index], batch.utf8[index])
            if text != batch.texts[index]:
                verdicts[index] = text
        return verdicts


def _odd_characters(data: Bytes) -> Positions:
    """Places of all that `Unicode` may have to change, and of little else.

    What it passes beyond ASCII, U+00A0 to U+02FF and U+2002 to U+20BF, NFC leaves alone in any company (tested);
    on English web pages that is 95% of the characters beyond ASCII.
    """
    odd = [np.flatnonzero(data == _DELETE)] if (data == _DELETE).any() else []
    if np.count_nonzero(data < _SPACE) != np.count_nonzero(data == _NEWLINE):
        odd.append(np.flatnonzero((data < _TAB) | (data > _RETURN) & (data < _SPACE)))
    leads = np.flatnonzero(data[:SLICE_BYTES] >= 0xC2)
    leads = leads[data[leads] != SEPARATOR[0]]
    if len(leads):
        first, second = data[leads], data[leads + 1]
        fine = (first > 0xC2) & (first < 0xCC)
        fine |= (first == 0xC2) & (second >= 0xA0)
        fine |= (first == 0xE2) & (second <= 0x82)
        odd.append(leads[~fine])
        wide = leads[(first == 0xE2) & (second == 0x80)]
        odd.append(wide[data[wide + 2] < 0x82])  # U+2000 and U+2001, which NFC spells U+2002 and U+2003
    return np.sort(np.concatenate(odd)) if odd else _NOWHERE


def _composed(text: str, utf8: bytes) -> str:
    plain = utf8.translate(None, _CONTROL)
    if b"\xc2" in plain:
        plain = _HIGH_CONTROL.sub(b"", plain)
    if b"\xef" in plain:
        plain = plain.replace(_BYTE_ORDER_MARK, b"")
    if len(plain) != len(utf8):
        text = plain.decode()
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Whitespace(Step):
    """Makes every line end a newline, takes blanks off line ends, shrinks other runs of blanks and of empty lines.

    A run of blanks inside a line becomes one space (indentation stays), three or more newlines become two, both ends
    of the document are stripped.
    """

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents with other white space."""
        suspects = batch.documents_at([start + _odd_blanks(data) for start, data in batch.slices()])
        verdicts: Verdicts = {i: t.strip() for i, t in enumerate(batch.texts) if t.strip() is not t}
        stripped = [(index, verdicts.get(index, batch.texts[index])) for index in suspects]
        dirty = [(index, str(text)) for index, text in stripped if text]
        tidied = _tidied(SEPARATOR.join([text.encode() for _, text in dirty]))
        for (index, text), data in zip(dirty, tidied.split(SEPARATOR), strict=bool(dirty)):
            if (tidy := data.decode()) != text:
                verdicts[index] = tidy
        return verdicts


def _odd_blanks(data: Bytes) -> Positions:
    """Places of all that `_tidied` changes."""
    is_newline = data == _NEWLINE
    is_space = data <= _SPACE
    odd = []
    if np.count_nonzero(data < _SPACE) != np.count_nonzero(is_newline):
        is_space = (data == _SPACE) | (data == _TAB) | is_newline
        odd.append(np.flatnonzero((data > _NEWLINE) & (data <= _RETURN)))
    before_newline = np.flatnonzero(is_space[:-2] & is_newline[1:-1])
    odd.append(before_newline[(data[before_newline] != _NEWLINE) | is_newline[before_newline + 2]])
    runs = np.flatnonzero((is_space[1:-1] & is_space[2:]) > is_space[:-2]) + 1
    odd.append(runs[data[runs] != _NEWLINE])
    return np.sort(np.concatenate(odd))


def _tidied(data: bytes) -> bytes:
    """Joined documents without ends to strip, with their white space in one spelling."""
    if any(end in data for end in (b"\r", b"\x0b", b"\x0c")):
        data = data.replace(b"\r\n", b"\n").translate(_NEWLINES)
    pieces, start = [], 0
    while start < len(data):  # cut where no white space is
        cut = _INSIDE_WORD.search(data, start + SLICE_BYTES)
        end = cut.start() + 1 if cut else len(data)
        pieces.append(_tidied_piece(np.frombuffer(data, np.uint8, end - start, start)))
        start = end
    return b"".join(pieces)


def _tidied_piece(data: Bytes) -> bytes:
    data = _without_blank_runs(data)
    is_newline = data == _NEWLINE
    surplus = is_newline[2:] & is_newline[1:-1] & is_newline[:-2]
    if surplus.any():
        data = np.concatenate((data[:2], data[2:][~surplus]))
    return data.tobytes()


def _without_blank_runs(data: Bytes) -> Bytes:
    """No blank at a line's end, one space for several inside a line, every blank at a line's start.

    `data` begins and ends with something else.
    """
    is_blank = data == _SPACE
    if (is_tab := data == _TAB).any():
        is_blank |= is_tab
    is_newline = data == _NEWLINE
    is_kept = np.ones(len(data), bool)
    is_kept[1:-1] = (is_blank[1:-1] & is_newline[2:]) <= is_blank[:-2]  # all but a blank alone at a line's end
    pairs = is_blank[:-1] & is_blank[1:]
    firsts = np.flatnonzero(pairs[1:] > is_blank[:-2]) + 1  # of runs of two or more, and their lasts
    lasts = np.flatnonzero(pairs[:-1] > is_blank[2:]) + 1
    ends_line = is_newline[lasts + 1]
    is_inside = (data[firsts - 1] != _NEWLINE) & ~ends_line
    data = data.copy()
    data[firsts[is_inside]] = _SPACE
    firsts[is_inside] += 1
    is_kept[_ranges(firsts[ends_line | is_inside], lasts[ends_line | is_inside])] = False
    kept: Bytes = data[is_kept]
    return kept


def _ranges(firsts: Positions, lasts: Positions) -> Positions:
    """All places from each first to its last."""
    lengths = lasts - firsts + 1
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(lengths.sum())
