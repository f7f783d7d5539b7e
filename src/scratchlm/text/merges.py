"""The merges of a byte-level BPE, learnt from text; and the alphabet that byte-level pieces are written in.

`tokenizers` defines the merges. `ffbpe` finds the same ones several times as fast; where it is not installed, the
tokenizer is the same, later.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from scratchlm.files.whole import temporary_folder

# What `tokenizers` cuts words by, in the spelling that `ffbpe` has a scanner of its own for: three times as fast as the
# same pattern spelled otherwise.
# Source: Radford et al., GPT-2, `Encoder.pat`, https://github.com/openai/gpt-2/blob/master/src/encoder.py.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Training takes time that grows with the square of a word's length, so it sees a long run without a blank, such as
# base64 or DNA, and a long run of blanks in pieces of about this many characters (chosen, not tuned).
_LONGEST_WORD = 1_000

_BATCH_BYTES = 8 << 20  # of text that is held while words are counted; 64 MB count no faster


def learn_merges(texts: Iterable[str], n_tokens: int, min_frequency: int) -> list[tuple[str, str]]:
    """The pairs that a byte-level BPE with GPT-2's word pattern merges, the first to merge first.

    Args:
        texts: What to learn from, read once, without halves of surrogate pairs.
        n_tokens: Bytes and merges to aim at; too little text gives fewer.
        min_frequency: No pair seen fewer times than this is merged.

    Returns:
        Pairs of pieces, written in the characters of `BYTE_OF_CHARACTER`; the same whichever library finds them.
    """
    pieces = itertools.chain.from_iterable(map(short_words, texts))
    find = _by_tokenizers if _ffbpe_version() is None else _by_ffbpe
    return find(pieces, n_tokens, min_frequency)


def trainer() -> str:
    """The library that `learn_merges` uses and, where that is the slow one, the cure; a part of a line to print."""
    installed = _ffbpe_version()
    return f"ffbpe {installed}" if installed else "tokenizers, as ffbpe, several times as fast, is not installed"


def short_words(text: str) -> Iterator[str]:
    """The text in pieces in which no run of blanks or without one has twice `_LONGEST_WORD` characters."""
    start = 0
    # A run of that length fills one of these blocks whole; looking at the first word of each costs next to nothing.
    for at in range(0, len(text) - _LONGEST_WORD + 1, _LONGEST_WORD):
        words = text[at : at + _LONGEST_WORD].split(None, 1)
        if not words or len(words[0]) == _LONGEST_WORD:
            if start < at:
                yield text[start:at]
            start = at + _LONGEST_WORD
            yield text[at:start]
    if start < len(text):
        yield text[start:]


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """A tokenizer around `model` that cuts words by GPT-2's pattern and writes bytes as characters."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _ffbpe_version() -> str | None:
    try:
        import ffbpe  # noqa: F401
    except ImportError:
        return None
    return version("ffbpe")


def _by_ffbpe(texts: Iterable[str], n_tokens: int, min_frequency: int) -> list[tuple[str, str]]:
    import ffbpe

    counter = ffbpe.PreTokenizer([], pat_str=_WORDS).word_counter()
    counter.add_source(texts, max_bytes=_BATCH_BYTES, prefetch=0)  # 1 would read `texts` in another thread
    library = ffbpe.BpeTrainer([], initial_alphabet="byte_level", bigram_cutoff_freq=min_frequency)
    library.add_word_counter(counter)
    library.train(n_tokens)
    with temporary_folder() as folder:
        file = folder / "merges.txt"
        library.validate_model().save_merges_txt(file, format="gpt2")
        lines = file.read_text(encoding="utf-8").splitlines()
    return [(left, right) for left, right, *_ in (line.split(" ") for line in lines if line)]


def _by_tokenizers(texts: Iterable[str], n_tokens: int, min_frequency: int) -> list[tuple[str, str]]:
    inner = byte_level(models.BPE())
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=n_tokens,
            min_frequency=min_frequency,
            initial_alphabet=sorted(BYTE_OF_CHARACTER),
            show_progress=False,
        ),
    )
    return [(left, right) for left, right in json.loads(inner.to_str())["model"]["merges"]]


def _byte_of_character() -> dict[str, int]:
    """Which byte each character of a byte-level piece stands for.

    Source:
        Radford et al., GPT-2, `bytes_to_unicode`, https://github.com/openai/gpt-2/blob/master/src/encoder.py: bytes
        that print stand for themselves, the others are numbered from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
