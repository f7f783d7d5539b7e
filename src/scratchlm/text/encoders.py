"""Many texts to one flat array of ids, through the library that the tokenizer was told to take.

`tokenizers` defines the ids. `fastokens` gives the same ones many times as fast, for the tokenizers that it can read;
`fastest_encoder` checks that on texts before it is relied on.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from scratchlm.errors import BadValue

ENCODERS = ("fastokens", "tokenizers")  # the fastest first
SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: a str can hold it, UTF-8 cannot

Flat = tuple[NDArray[np.uint16], NDArray[np.int64]]
Encode = Callable[[Sequence[str]], Flat]

# One call of a library sees about this many characters, so that its memory is bounded. Measured with fastokens on web
# pages: 250 MB/s with 0.5 to 1 Mi, and 200 with 8 Mi.
_CALL_CHARACTERS = 1 << 20

# No pre-token goes from a character that is no blank over a blank: in GPT-2's pattern a blank only begins one or stands
# among blanks. U+180E was a blank until Unicode 6.3, so that libraries differ about it.
_BLANK_BEHIND_A_WORD = re.compile("(?<=[^\\s\u180e])[ \\n]")
_ANYWHERE = re.compile("")


def bulk_encoder(name: str, inner: tokenizers.Tokenizer) -> Encode:
    """A function from texts to their ids, one behind the other, and where each text begins.

    Args:
        name: One of `ENCODERS`.
        inner: The tokenizer, set to read special tokens as text.

    Returns:
        Takes texts; gives ids (n_ids,) and offsets (n_texts + 1,): text i has ids[offsets[i] : offsets[i + 1]].
        Memory beside its result is bounded, but for a text of one endless word or of a tokenizer with a pre-tokenizer
        of its own: those go through whole. Half of a surrogate pair is read as U+FFFD.

    Raises:
        BadValue: No such encoder, or it is not installed.
        ValueError: `fastokens` cannot read the tokenizer.
    """
    if name not in ENCODERS:
        raise BadValue(f"encoder={name}: no such library. Take one of {', '.join(ENCODERS)}.")
    spelling = inner.to_str()
    call = _by_tokenizers(inner) if name == "tokenizers" else _by_fastokens(spelling)
    cut = _cut_of(json.loads(spelling))

    def encode(texts: Sequence[str]) -> Flat:
        if sum(map(len, texts)) <= _CALL_CHARACTERS:
            return call(texts)
        ids = []
        offsets = np.zeros(len(texts) + 1, np.int64)
        for numbers, pieces in _calls(texts, cut):
            found, at = call(pieces)
            ids.append(found)
            np.add.at(offsets, np.array(numbers) + 1, np.diff(at))
        return np.concatenate(ids), np.cumsum(offsets)

    return encode


def fastest_encoder(inner: tokenizers.Tokenizer, texts: Sequence[str]) -> tuple[str, str]:
    """The fastest of `ENCODERS` that gives the ids of `tokenizers`.

    Args:
        inner: The tokenizer, set to read special tokens as text.
        texts: What to compare them on; `inner` can spell all of it.

    Returns:
        Its name, and one line that says which and why.
    """
    installed = _fastokens_version()
    if installed is None:
        return "tokenizers", (
            "encoding with tokenizers: fastokens, which is many times as fast, is not installed (pip install fastokens)"
        )
    fastokens = f"fastokens {installed}"
    try:
        fast = bulk_encoder("fastokens", inner)
    except Exception as error:  # ValueError today; whatever a young library raises, tokenizers can go on
        return "tokenizers", f"encoding with tokenizers: {fastokens} cannot read this tokenizer ({error})"
    differs = _first_difference(fast, bulk_encoder("tokenizers", inner), texts)
    if differs is not None:
        shown = differs if len(differs) <= 60 else differs[:60] + "..."
        return "tokenizers", f"encoding with tokenizers: {fastokens} gives other ids for {shown!r}"
    return "fastokens", f"encoding with {fastokens}: the ids of tokenizers on all {len(texts):,} texts of the check"


def probes(specials: Sequence[str]) -> list[str]:
    """Texts that encoders are likely to differ on.

    Args:
        specials: The special tokens, whose literal text in a document is ordinary text.
    """
    points = [*range(0x3000), *range(0x3000, 0xD800, 97), *range(0xE000, 0x110000, 997)]
    spread = "".join(map(chr, np.random.Generator(np.random.Philox(0)).permutation(points)))
    # fastokens 0.3.2 kept the words of a text for the next one with the same first 4 KiB, and one word too many where a
    # run of blanks goes on differently.
    shared = "some words, " * 400 + " " * 700
    return [
        *(shared + end for end in ("x and more", " ", "\n", "\tx", "y")),
        *specials,
        *(f"a{special}b {special} \n{special}{special}" for special in specials),
        "".join(f"{special}user\nHello{special}\n" for special in specials),
        "".join(specials)[:-1],
        "",
        " ",
        "half of a pair \ud83d and \udc4dthe other",
        "x" * 50_000,
        spread,
        " ".join(map(chr, points)),
        "".join(map(chr, range(0x4E00, 0x7E00))),
        "ACGT" * 5_000,
        "0123456789" * 1_000,
        "1 12 123 1234 12,345.67 1e-9 \u0663\u0664 \u00bd \u2167",
        "one\r\ntwo\r\n\r\n\tthree\n\n\nfour\r\rfive\x0b\x0c\x85\u2028\u2029six",
        "".join(" " * n + "a" + "\n" * n + "b" + "\t" * n for n in range(70)),
        " \n" * 500 + "\u00a0\u3000\u200b\u180e " * 50,
        "don't DON'T we'll 'tis I'm 'S o\u2019clock 've'd''s",
        "cafe\u0301 \u0301\u0323 \ufb01 \U0001f469\u200d\U0001f680\U0001f44d\U0001f3fd \ufeff\ufffd",
        "((--**))...!!! a_b-c/d\\e#f@g.h <tag attr='1'/> {\"key\": [1, 2]}",
        "camelCaseWORDSand\u00c9COLE\u4f60\u597d\uff0c\u4e16\u754cabc\ud55c\uad6d",
    ]


def _fastokens_version() -> str | None:
    try:
        import fastokens  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return None
    return version("fastokens")


def _first_difference(one: Encode, other: Encode, texts: Sequence[str]) -> str | None:
    (ids, offsets), (other_ids, other_offsets) = one(texts), other(texts)
    if np.array_equal(ids, other_ids) and np.array_equal(offsets, other_offsets):
        return None
    places = zip(texts, itertools.pairwise(offsets), itertools.pairwise(other_offsets), strict=True)
    return next(text for text, (a, b), (c, d) in places if not np.array_equal(ids[a:b], other_ids[c:d]))


def _by_tokenizers(inner: tokenizers.Tokenizer) -> Encode:
    def call(texts: Sequence[str]) -> Flat:
        whole = [SURROGATE.sub("\ufffd", text) for text in texts]
        found = [encoding.ids for encoding in inner.encode_batch_fast(whole, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return np.fromiter(itertools.chain.from_iterable(found), np.uint16, offsets[-1]), offsets

    return call


@functools.lru_cache(maxsize=1)  # it takes as long as encoding 10 MB, and one process checks, chooses and uses it
def _read_by_fastokens(spelling: str) -> Any:
    from fastokens import Tokenizer

    return Tokenizer.from_json_str(spelling)


def _by_fastokens(spelling: str) -> Encode:
    if _fastokens_version() is None:
        raise BadValue(
            "encoder=fastokens: not installed in this process's Python, though the run was set up with it. "
            "Install it everywhere that the run works: pip install fastokens."
        )
    # It starts a thread a core at its first work, unless told otherwise. Processes share the work here, and two threads
    # were slower than one: 108 against 149 MB/s on two cores.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    library = _read_by_fastokens(spelling)

    def call(texts: Sequence[str]) -> Flat:
        texts = list(texts)
        try:
            ids, offsets = library.encode_batch_flat(texts, split_special_tokens=True)
        except UnicodeEncodeError:  # rare, and looking for surrogates first costs a tenth of the encoding
            return call([SURROGATE.sub("\ufffd", text) for text in texts])
        return np.frombuffer(ids, "<u4").astype(np.uint16), np.frombuffer(offsets, "<u8").astype(np.int64)

    return call


def _cut_of(settings: dict[str, Any]) -> re.Pattern[str] | None:
    """What begins a piece of text that is encoded as it would be inside the whole, or None where nothing is known."""
    if settings["normalizer"]:
        return None
    added, pre = settings["added_tokens"], settings["pre_tokenizer"]
    if pre is None:  # a model without merges spells every character by itself
        return None if settings["model"].get("merges", True) or not all(t["special"] for t in added) else _ANYWHERE
    steps = [step for step in pre.get("pretokenizers", [pre]) if step["type"] != "Digits"]  # it only cuts more
    if len(steps) != 1 or steps[0]["type"] != "ByteLevel" or not steps[0]["use_regex"] or steps[0]["add_prefix_space"]:
        return None
    # An added token is found before anything is cut into words, and may have a blank in its midst.
    if any(token["single_word"] or _BLANK_BEHIND_A_WORD.search(token["content"], 1) for token in added):
        return None
    return _BLANK_BEHIND_A_WORD


def _calls(texts: Sequence[str], cut: re.Pattern[str] | None) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers of texts and pieces of them, in order, about `_CALL_CHARACTERS` at a time."""
    numbers: list[int] = []
    pieces: list[str] = []
    room = _CALL_CHARACTERS
    for number, text in enumerate(texts):
        for piece in _pieces(text, cut):
            numbers.append(number)
            pieces.append(piece)
            room -= len(piece)
            if room <= 0:
                yield numbers, pieces
                numbers, pieces, room = [], [], _CALL_CHARACTERS
    if pieces:
        yield numbers, pieces


def _pieces(text: str, cut: re.Pattern[str] | None) -> Iterator[str]:
    start = 0
    while cut and len(text) - start > _CALL_CHARACTERS:
        found = cut.search(text, start + _CALL_CHARACTERS)
        if not found:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text
