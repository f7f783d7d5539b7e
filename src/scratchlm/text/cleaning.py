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


class Report:
    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def merge(self, other: "Report") -> "Report":
        self.dropped += other.dropped
        return self

    def to_json(self) -> dict:
        return dict(self.dropped)

    @classmethod
    def from_json(cls, v: dict) -> "Report":
        r = cls()
        r.dropped = Counter(v)
        return r


def parse_cleaning(spec: list | None) -> list[dict]:
    return [{"unicode": {}}, {"whitespace": {}}, {"length": {"min_characters": 64}}] if spec is None else spec


class Cleaner:
    def __init__(self, steps: list[dict]) -> None:
        self.report = Report()

    def clean_many(self, texts: list[str], ids: list[str]) -> list[str | None]:
        out = []
        for t in texts:
            t = normalized(t)
            if len(t) < 64:
                self.report.dropped["too short"] += 1
                out.append(None)
            else:
                out.append(t)
        return out


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
