"""Text to ids and back: training, loading and saving a tokenizer, whole texts and piece by piece.

Three kinds, all saved as one `tokenizer.json` that Hugging Face `tokenizers` reads. `bpe` and `unigram` work on the
bytes of the text, so they spell any text; `char` spells the characters it was trained on. All give back exactly the
text they were given.
"""

import codecs
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, trainers

from scratchlm.errors import BadValue, MissingFile
from scratchlm.files.whole import write_text
from scratchlm.text.encoders import SURROGATE, bulk_encoder, fastest_encoder, probes
from scratchlm.text.merges import BYTE_OF_CHARACTER, byte_level, learn_merges, short_words

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT = SPECIAL_TOKENS[0]
KINDS = ("bpe", "unigram", "char")
MAX_VOCAB_SIZE = 2**16  # an id is stored as uint16
MIN_VOCAB_SIZE = 2**8 + len(SPECIAL_TOKENS)  # of a tokenizer that works on bytes

# tokenizers warns when a process forks after its threads have run, unless this is set. It reads the variable at every
# call: a forked child has lost those threads and would wait for them for ever, so there it says false.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


class Tokenizer:
    """Gives back every text it can spell; to it, the literal text of a special token is ordinary text."""

    def __init__(self, inner: tokenizers.Tokenizer, encoder: str = "tokenizers") -> None:
        """Adds the special tokens that `inner` lacks, and looks up what every id stands for.

        Args:
            inner: From `train`, `load` or `from_json`, which make sure that it can be what this class promises.
            encoder: What `encode_flat` works with; `choose_encoder` finds the best.

        Raises:
            BadValue: The vocabulary does not fit uint16, or `inner` does not give back its text.
        """
        inner.add_special_tokens(
            [tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
        )
        inner.encode_special_tokens = True  # not stored in the JSON
        self._inner = inner
        names = {id: text for text, id in inner.get_vocab(with_added_tokens=True).items()}
        added = inner.get_added_tokens_decoder()
        self.kind = _kind_of(json.loads(inner.to_str()))
        self.vocab_size = max(names) + 1
        self.special_ids = sorted(id for id, token in added.items() if token.special)
        self.end_of_text_id = next(id for id, token in added.items() if token.content == END_OF_TEXT)
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise BadValue(
                f"data.tokenizer: a vocabulary of {self.vocab_size:,} tokens does not fit; ids are stored as uint16, "
                f"so {MAX_VOCAB_SIZE:,} is the most. Adopt a smaller one, or train one: data.tokenizer=bpe."
            )
        spell = _bytes_of_piece if self.kind != "char" else str.encode
        self._bytes = [b""] * self.vocab_size
        for id, name in names.items():
            if id not in added:
                self._bytes[id] = spell(name)
            elif not added[id].special:
                self._bytes[id] = added[id].content.encode()
        self._alphabet = {piece for piece in self._bytes if piece}
        self._byte_gaps = set() if self.kind == "char" else {n for n in range(256) if bytes([n]) not in self._alphabet}
        self._check()
        self._use(encoder)

    def encode(self, text: str) -> list[int]:
        """The ids of one text; nothing is put before or behind.

        Args:
            text: Any text. Half of a surrogate pair, which UTF-8 cannot hold, is read as U+FFFD.

        Returns:
            Ids, each below `vocab_size`, none of them special.

        Raises:
            BadValue: A character cannot be spelled; the line names it.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, as `encode` gives them one by one, on all cores."""
        self._check_spelling(texts)
        whole = [SURROGATE.sub("\ufffd", text) for text in texts]
        return [encoding.ids for encoding in self._inner.encode_batch_fast(whole, add_special_tokens=False)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """The ids of many texts in one array, as `encode` gives them one by one, by the library in `encoder`.

        Args:
            texts: Any texts, of any length; a long one goes through the library in pieces where that changes no id.

        Returns:
            ids (n_ids,) and offsets (n_texts + 1,): text i has ids[offsets[i] : offsets[i + 1]].

        Raises:
            BadValue: A character cannot be spelled; the line names it.
        """
        self._check_spelling(texts)
        return self._encode_flat(texts)

    def choose_encoder(self, sample: Sequence[str]) -> str:
        """Makes `encode_flat` use `fastokens` where that gives the ids of `tokenizers`, else `tokenizers`.

        Args:
            sample: Texts of the corpus to compare the two on, a few MB: `tokenizers` takes a second for 5 to 20 MB.
                Texts with special tokens in them and other known traps are compared as well.

        Returns:
            One line that says which and why; `encoder` is the name, for `from_json` in another process.
        """
        specials = [token.content for token in self._inner.get_added_tokens_decoder().values()]
        texts = [text for text in (*probes(specials), *sample) if not self.unknown_characters(text)]
        name, line = fastest_encoder(self._inner, texts)
        self._use(name)
        return line

    def _use(self, encoder: str) -> None:
        self._encode_flat = bulk_encoder(encoder, self._inner)
        self.encoder = encoder

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of `text` that it has no ids for, sorted; always none where it knows all 256 bytes."""
        if self.kind != "char" and not self._byte_gaps:
            return []
        characters = set(SURROGATE.sub("\ufffd", text))
        if self.kind == "char":
            return sorted(character for character in characters if character.encode() not in self._alphabet)
        return sorted(character for character in characters if not self._byte_gaps.isdisjoint(character.encode()))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[id] for id in ids).decode(errors="replace")

    def stream(self) -> "PieceDecoder":
        """A decoder for ids that come one by one."""
        return PieceDecoder(self._bytes)

    def bytes_of_ids(self) -> list[int]:
        """UTF-8 bytes that each id stands for, 0 for special tokens; over the ids of a text they sum to its length."""
        return [len(piece) for piece in self._bytes]

    def to_json(self) -> str:
        """The content of `tokenizer.json`; `from_json` of it is this tokenizer again, and gives the same JSON."""
        return self._inner.to_str()

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, and for a BPE, before it, the older form: `vocab.json` and `merges.txt`."""
        folder = Path(folder)
        if self.kind == "bpe":
            vocabulary = sorted(self._inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
            merges = json.loads(self.to_json())["model"]["merges"]
            write_text(folder / "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False))
            write_text(
                folder / "merges.txt", "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
            )
        write_text(folder / "tokenizer.json", self.to_json())

    def _check_spelling(self, texts: Sequence[str]) -> None:
        if self.kind != "char" and not self._byte_gaps:
            return
        unknown = sorted({character for text in texts for character in self.unknown_characters(text)})
        if unknown:
            raise BadValue(
                f"text: the tokenizer cannot spell {_spelled_out(unknown)}, which its training text did not hold. "
                "Leave the character out, or train a tokenizer that spells any text: data.tokenizer=bpe."
            )

    def _check(self) -> None:
        """Refuses an adopted tokenizer that would lose text; one of our own making always passes."""
        for text in (*_PROBES, *SPECIAL_TOKENS, *(f"a {special} b" for special in SPECIAL_TOKENS)):
            if self.unknown_characters(text):
                continue
            ids = self.encode(text)
            if self.decode(ids) != text or not set(self.special_ids).isdisjoint(ids):
                raise BadValue(
                    f"data.tokenizer: this tokenizer reads {text!r} as {self.decode(ids)!r} and so would change the "
                    "corpus. Adopt one that works on bytes and changes nothing, as GPT-2's, or train one: "
                    "data.tokenizer=bpe."
                )


class PieceDecoder:
    """Text out of ids that come one by one: a character appears when all of its bytes are there.

    The pieces joined, with `end`, are what `Tokenizer.decode` gives for all ids at once.
    """

    def __init__(self, bytes_of_id: Sequence[bytes]) -> None:
        """Begins a new text; made by `Tokenizer.stream`.

        Args:
            bytes_of_id: The bytes each id stands for.
        """
        self._bytes = bytes_of_id
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, id: int) -> str:
        """The characters that are whole now that `id` has come; often none, when it ends inside a character."""
        return self._decoder.decode(self._bytes[id])

    def end(self) -> str:
        """What is left: U+FFFD for a character that was never finished, else nothing."""
        return self._decoder.decode(b"", final=True)


def train(kind: str, texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """Makes a tokenizer out of texts; the same texts in the same order give the same tokenizer, to the byte.

    Args:
        kind: `bpe`, `unigram` or `char`.
        texts: What to learn from, read once. For `char`, the whole text: it spells only characters that are here.
            `bpe` and `unigram` learn from a run of more than about 1,000 characters without a blank in pieces of that
            length; text with shorter words is not cut.
        vocab_size: Tokens to aim at, the four special ones included. Too little text gives fewer. `char` does not look
            at it: it takes as many as there are characters.
        min_frequency: `bpe` merges no pair of pieces seen fewer times than this.

    Returns:
        A tokenizer whose ids 0 to 3 are the special tokens.

    Raises:
        BadValue: An argument out of its range, no text, or more characters than ids.
    """
    if kind not in KINDS:
        raise BadValue(
            f"data.tokenizer={kind}: no such kind. Take one of {', '.join(KINDS)}, or the path of a tokenizer.json."
        )
    if kind != "char" and not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise BadValue(
            f"data.vocab_size={vocab_size}: a {kind} tokenizer needs {MIN_VOCAB_SIZE} (256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens), and {MAX_VOCAB_SIZE} is the most that uint16 ids can number. "
            "Name a size between them."
        )
    if min_frequency < 1:
        raise BadValue(f"data.min_frequency={min_frequency}: a pair is seen once at least. Take 1 or more.")
    whole = (SURROGATE.sub("\ufffd", text) for text in texts if text)
    first = next(whole, None)
    if first is None:
        raise BadValue(f"data.tokenizer={kind}: there is no text to train it on. Name sources that have some.")
    read = itertools.chain([first], whole)
    if kind == "char":
        return Tokenizer(_character_level(read))
    if kind == "bpe":
        learnt = learn_merges(read, vocab_size - len(SPECIAL_TOKENS), min_frequency)
        pieces = [*SPECIAL_TOKENS, *sorted(BYTE_OF_CHARACTER), *(left + right for left, right in learnt)]
        return Tokenizer(byte_level(models.BPE({piece: id for id, piece in enumerate(pieces)}, learnt)))
    return Tokenizer(_unigram(read, vocab_size))


def load(path: str | Path) -> Tokenizer:
    """Adopts a tokenizer that exists.

    Args:
        path: A `tokenizer.json`, or a folder with one, or a folder with `vocab.json` and `merges.txt`.

    Returns:
        The tokenizer. Special tokens that it lacks are added behind its own.

    Raises:
        MissingFile: No such file, or nothing of the kind in the folder.
        BadValue: The file cannot be read as a tokenizer, is none that gives back its text, or is too large for uint16.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    pair = (path / "vocab.json", path / "merges.txt")
    if file.is_file():
        try:
            return from_json(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise BadValue(
                f"data.tokenizer={path}: not a tokenizer.json (it is no UTF-8 text). Name another file."
            ) from None
    if all(part.is_file() for part in pair):
        try:
            inner = byte_level(models.BPE.from_file(*map(str, pair)))
        except Exception as error:  # the library raises no narrower kind
            raise BadValue(f"data.tokenizer={path}: vocab.json and merges.txt cannot be read ({error}).") from None
        return Tokenizer(inner)
    raise MissingFile(
        f"data.tokenizer={path}: no tokenizer there. Name a tokenizer.json, or a folder with one or with vocab.json "
        f"and merges.txt, or have one trained: data.tokenizer={KINDS[0]}."
    )


def from_json(text: str, encoder: str = "tokenizers") -> Tokenizer:
    """The tokenizer whose `tokenizer.json` has this content.

    Whatever would change, cut or decorate a text is taken off an adopted one: truncation, padding, dropout, the tokens
    that its post-processor puts around a text, NFC (cleaning has a switch of its own, `data.normalize`).

    Args:
        text: The JSON.
        encoder: What `encode_flat` works with: the `encoder` that `Tokenizer.choose_encoder` has settled on.

    Raises:
        BadValue: As for `load`, or `encoder` is not installed here.
    """
    try:
        settings: dict[str, Any] = json.loads(text)
        settings |= {"truncation": None, "padding": None, "post_processor": None}
        if (settings.get("normalizer") or {}).get("type") == "NFC":
            settings["normalizer"] = None
        settings["model"]["dropout"] = None
        for token in settings["added_tokens"]:
            token |= {
                "lstrip": False,
                "rstrip": False,
                "special": token["special"] or token["content"] in SPECIAL_TOKENS,
            }
        inner = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the library raises no narrower kind
        raise BadValue(
            f"data.tokenizer: not a tokenizer.json ({error}). Name one that Hugging Face tokenizers can read."
        ) from None
    return Tokenizer(inner, encoder)


def _kind_of(settings: dict[str, Any]) -> str:
    """Which of our kinds a tokenizer.json is, by its parts."""
    model, decoder = settings["model"]["type"], (settings["decoder"] or {}).get("type")
    if decoder == "ByteLevel" and model in ("BPE", "Unigram"):
        return "bpe" if model == "BPE" else "unigram"
    if decoder == "Fuse" and model == "BPE" and settings["pre_tokenizer"] is None and not settings["model"]["merges"]:
        return "char"
    raise BadValue(
        f"data.tokenizer: a {model} model with a {decoder} decoder does not give back every text unchanged. Adopt a "
        "BPE or Unigram that works on bytes (a ByteLevel decoder, as GPT-2's), or train one: data.tokenizer=bpe."
    )


def _character_level(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """A BPE without merges: every character is a piece."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    if len(alphabet) + len(SPECIAL_TOKENS) > MAX_VOCAB_SIZE:
        raise BadValue(
            f"data.tokenizer=char: the text has {len(alphabet):,} different characters, and uint16 ids can number "
            f"{MAX_VOCAB_SIZE:,}. Take data.tokenizer=bpe."
        )
    pieces = (*SPECIAL_TOKENS, *sorted(alphabet))
    inner = tokenizers.Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[]))
    inner.decoder = decoders.Fuse()
    return inner


def _unigram(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trained so that the result is the same every time.

    The library walks a hash map with a random seed. Measured over 24 trainings on 0.4 to 5 MB, the pieces came out the
    same each time; what moved were the last digits of their scores (by up to 4e-11, so three decimals are safe) and the
    scores of characters that it adds at the end, spaced by 0.0001 upwards from the lowest, in the map's order.
    """
    inner = byte_level(models.Unigram())
    inner.train_from_iterator(
        itertools.chain.from_iterable(map(short_words, texts)),
        trainers.UnigramTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            special_tokens=[],
            initial_alphabet=sorted(BYTE_OF_CHARACTER),
            show_progress=False,
        ),
    )
    scores = {piece: round(score, 3) for piece, score in json.loads(inner.to_str())["model"]["vocab"]}
    lowest = min(scores.values())
    for piece, score in scores.items():
        if len(piece) == 1 and score < lowest + 0.0001 * len(BYTE_OF_CHARACTER):
            scores[piece] = lowest
    # A special token stands in the vocabulary for its id alone; no text comes near such a score.
    unreachable = [(special, lowest - 1000.0) for special in SPECIAL_TOKENS]
    inner.model = models.Unigram(unreachable + sorted(scores.items(), key=lambda item: (-item[1], item[0])))
    return inner


def _spelled_out(characters: Sequence[str]) -> str:
    """Characters as a reader can find them, the first few of many."""
    shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:5])
    return shown + (f" and {len(characters) - 5} more" if len(characters) > 5 else "")


def _bytes_of_piece(piece: str) -> bytes:
    return bytes(BYTE_OF_CHARACTER[character] for character in piece)


# Text that a lossy tokenizer is likely to change: case, double blanks, line ends, accents beside their letters.
_PROBES = (
    " Two  blanks,\ta tab; CAPITALS,\r\nand a line end. ",
    "12345 e\u0301 \u00e9 \u4f60\u597d \U0001f469\u200d\U0001f680 \ufb01\x00",
)
