"""From a document as it was found to the document that is kept, or to the reason why it is not."""

import re
import unicodedata
from collections import Counter

import xxhash

# Every blank line or page break becomes a newline; other control characters go. One pass over UTF-8 bytes, where no
# byte below 0x80 is ever part of a longer character: 700 MB/s on one core, where a regular expression makes 70.
_NEWLINES = bytes.maketrans(b"\r\x0b\x0c", b"\n\n\n")
_CONTROL = bytes(sorted({*range(0x20), 0x7F} - set(b"\t\n\r\x0b\x0c")))
_HIGH_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")  # U+0080 to U+009F in UTF-8
_BYTE_ORDER_MARK = "\ufeff".encode()

# These begin at the first blank of a run and nowhere else, or a million blanks would take a million steps each; the
# look-behind comes second, for a pattern that begins with plain characters is searched for faster.
_BLANKS_AT_LINE_END = re.compile(r"[ \t](?<=[^ \t][ \t])[ \t]*\n")
_BLANKS_IN_LINE = re.compile(r"[ \t](?<=[^ \t\n][ \t])[ \t]+")
_BLANK_LINES = re.compile(r"\n{3,}")


class Cleaner:
    """Normalises documents and drops those that are too short, counting them.

    Attributes:
        dropped: Documents dropped, by reason: `"empty"`, `"too short"`.
    """

    def __init__(self, min_document_characters: int, normalize: bool) -> None:
        """Sets the rules.

        Args:
            min_document_characters: Documents with fewer characters than this, after normalising, are dropped.
            normalize: Compose Unicode (NFC), make line ends newlines, remove control characters and blanks at line
                ends, shrink runs of blanks inside a line to one (indentation stays) and three or more newlines to
                two, strip both ends. If false, text stays as it is.
        """
        self.min_document_characters = min_document_characters
        self.normalize = normalize
        self.dropped: Counter[str] = Counter()

    def clean(self, text: str) -> str | None:
        """The document to keep, or None for one that is dropped (and counted)."""
        if self.normalize:
            text = normalized(text)
        if not text:
            self.dropped["empty"] += 1
            return None
        if len(text) < self.min_document_characters:
            self.dropped["too short"] += 1
            return None
        return text


def normalized(text: str) -> str:
    """`text` in one spelling: see `Cleaner`; doing it twice changes nothing more."""
    data = text.encode(errors="ignore")  # halves of surrogate pairs, which JSON can carry and UTF-8 cannot, go here
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    data = data.translate(_NEWLINES, _CONTROL)
    if len(data) != len(text):
        data = _HIGH_CONTROL.sub(b"", data.replace(_BYTE_ORDER_MARK, b""))
        text = data.decode()
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    else:
        text = data.decode()
    if " \n" in text or "\t\n" in text:
        text = _BLANKS_AT_LINE_END.sub("\n", text)
    if "  " in text or "\t" in text:
        text = _BLANKS_IN_LINE.sub(" ", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def content_hash(text: str) -> int:
    """64 bits that stand for a document's content, the same on every machine: XXH3 of its UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


class Deduplicator:
    """Remembers the content hashes it has seen; about 100 bytes of memory a document."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._seen: set[int] = set()

    def is_copy(self, hash: int) -> bool:
        """Whether this content hash was asked about before."""
        if hash in self._seen:
            return True
        self._seen.add(hash)
        return False
