"""One spelling for text: composed Unicode without control characters, and white space that keeps paragraphs.

Both steps look through all documents of a batch at once for the bytes that could need a change, and touch only the
documents that have some: few web pages do.
"""

import re
import unicodedata
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
_INSIDE_WORD = re.compile(rb"[^\t\n ]{2}")


@dataclass(frozen=True)
class Unicode(Step):
    """Composes Unicode (NFC) and removes control characters and byte order marks; white space stays."""

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents that are spelled otherwise."""
        verdicts: Verdicts = {}
        for index in batch.documents_at([start + _odd_characters(data) for start, data in batch.slices()]):
            text = _composed(batch.texts[index], batch.utf8[index])
            if text != batch.texts[index]:
                verdicts[index] = text
        return verdicts


def _odd_characters(data: Bytes) -> Positions:
    """Places of all that `Unicode` may have to change, and of little else.

    What it passes beyond ASCII, U+00A0 to U+02FF and U+2002 to U+20BF, NFC leaves alone in any company (tested);
    on English web pages that is 95% of the characters beyond ASCII.
    """
    odd = data < _SPACE
    odd &= data != _NEWLINE
    odd |= data == _DELETE
    low = np.flatnonzero(odd)
    if len(low):
        low = low[(data[low] < _TAB) | (data[low] > _RETURN)]
    leads = np.flatnonzero(data[:SLICE_BYTES] >= 0xC2)
    leads = leads[data[leads] != SEPARATOR[0]]
    if not len(leads):
        return low
    first, second = data[leads], data[leads + 1]
    fine = (first > 0xC2) & (first < 0xCC)
    fine |= (first == 0xC2) & (second >= 0xA0)
    fine |= (first == 0xE2) & (second <= 0x82)
    wide = leads[(first == 0xE2) & (second == 0x80)]
    wide = wide[data[wide + 2] < 0x82]  # U+2000 and U+2001, which NFC spells U+2002 and U+2003
    return np.sort(np.concatenate((low, leads[~fine], wide)))


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
        stripped = {index: text.strip() for index, text in enumerate(batch.texts)}
        verdicts: Verdicts = {i: text for i, text in stripped.items() if text is not batch.texts[i]}
        suspects = [index for index in suspects if stripped[index]]
        tidied = _tidied(SEPARATOR.join([stripped[index].encode() for index in suspects])).split(SEPARATOR)
        for index, data in zip(suspects, tidied, strict=bool(suspects)):
            if data != batch.utf8[index]:
                verdicts[index] = data.decode()
        return verdicts


def _odd_blanks(data: Bytes) -> Positions:
    """Places of all that `_tidied` changes."""
    is_newline = data == _NEWLINE
    is_blank = data == _SPACE
    has_tabs = (data == _TAB).any()
    if has_tabs:
        is_blank |= data == _TAB
    odd = np.zeros(len(data), bool)
    odd[:-1] = is_blank[:-1] & is_newline[1:]
    odd[:-2] |= is_newline[:-2] & is_newline[1:-1] & is_newline[2:]
    run = is_blank[1:-1] & is_blank[2:]
    run &= ~is_blank[:-2]
    run &= ~is_newline[:-2]
    odd[:-2] |= run
    odd |= (data > _NEWLINE) & (data <= _RETURN)
    return np.flatnonzero(odd)


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
    is_blank |= data == _TAB
    is_newline = data == _NEWLINE
    surplus = np.zeros(len(data), np.int8)
    surplus[1:-1] = is_blank[1:-1] & ~is_blank[:-2] & is_newline[2:]
    pairs = is_blank[:-1] & is_blank[1:]
    firsts = np.flatnonzero(pairs[1:] & ~is_blank[:-2]) + 1  # of runs of two or more, and their lasts
    lasts = np.flatnonzero(pairs[:-1] & ~is_blank[2:]) + 1
    ends_line = is_newline[lasts + 1]
    inside = ~ends_line & ~is_newline[firsts - 1]
    data = data.copy()
    data[firsts[inside]] = _SPACE
    change = np.zeros(len(data), np.int8)
    change[firsts[ends_line]] = change[firsts[inside] + 1] = 1
    change[lasts[ends_line | inside] + 1] = -1
    surplus |= np.cumsum(change, dtype=np.int8)
    kept: Bytes = data[surplus == 0]
    return kept
