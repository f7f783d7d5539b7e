import json
import random
import sys
import time

import pytest
from tokenizers import models, trainers

from scratchlm.text import merges
from scratchlm.text.merges import BYTE_OF_CHARACTER, byte_level, learn_merges, short_words, trainer
from scratchlm.text.tokenizer import MIN_VOCAB_SIZE, SPECIAL_TOKENS, train

STORY = "The cat sat on the mat, and the other cat sat beside it. They didn't say a word; it was 1986.\n" * 20
# Few characters, evenly drawn, make words of equal frequency and pieces that come about in more than one way.
ALPHABETS = [
    "ab",
    "abc ",
    "aaaab\n",
    "01 ab'sl",
    "\u4f60\u597d\uff0ca ",
    "e\u0301\u00e9 \u0a05\u0a3e",
    "\x85\u2028\u00a0\u180e x",
]


def drawn_texts(seed: int) -> list[str]:
    generator = random.Random(seed)
    alphabet = ALPHABETS[seed % len(ALPHABETS)]
    return ["".join(generator.choices(alphabet, k=generator.randrange(1, 200))) for _ in range(generator.randrange(40))]


@pytest.mark.parametrize("seed", range(4 * len(ALPHABETS)))
def test_the_merges_are_those_of_tokenizers_whatever_finds_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, n_tokens, min_frequency = [*drawn_texts(seed), STORY, *SPECIAL_TOKENS], 256 + 20 * seed, 1 + seed % 4
    fast = learn_merges(texts, n_tokens, min_frequency)
    monkeypatch.setitem(sys.modules, "ffbpe", None)
    assert learn_merges(texts, n_tokens, min_frequency) == fast


def test_a_trained_bpe_is_the_one_that_tokenizers_trains() -> None:
    inner = byte_level(models.BPE())
    inner.train_from_iterator(
        [STORY, *SPECIAL_TOKENS],
        trainers.BpeTrainer(
            vocab_size=400,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(BYTE_OF_CHARACTER),
            show_progress=False,
        ),
    )
    assert (
        json.loads(train("bpe", [STORY, *SPECIAL_TOKENS], 400).to_json())["model"]
        == json.loads(inner.to_str())["model"]
    )


def test_the_words_counted_are_those_of_the_tokenizer() -> None:
    import ffbpe

    points = [point for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    generator = random.Random(1)
    generator.shuffle(points)
    text = "".join(
        chr(point) + generator.choice(["", " ", "  ", "\n", "a", "'s", "1", "!"]) for point in points[:20_000]
    )
    character_of = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    counted = ffbpe.PreTokenizer([], pat_str=merges._WORDS).get_words(text)
    expected: dict[str, int] = {}
    for word, _ in byte_level(models.BPE()).pre_tokenizer.pre_tokenize_str(text):
        expected[word] = expected.get(word, 0) + 1
    assert {"".join(character_of[byte] for byte in word.encode()): n for word, n in counted.items()} == expected


def test_the_line_names_the_library_and_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer().startswith("ffbpe 0.")
    monkeypatch.setitem(sys.modules, "ffbpe", None)
    assert trainer().startswith("tokenizers, as ffbpe")


def test_an_error_while_reading_texts_is_not_swallowed() -> None:
    def texts():
        yield STORY
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        learn_merges(texts(), 300, 2)


@pytest.mark.parametrize("library", ["ffbpe", "tokenizers"])
def test_a_run_without_a_blank_does_not_hang_the_training(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "tokenizers":
        monkeypatch.setitem(sys.modules, "ffbpe", None)
    letters = "".join(random.Random(0).choices("ACGT", k=2_000_000))
    begin = time.monotonic()
    trained = train("bpe", [letters], MIN_VOCAB_SIZE + 40)
    assert time.monotonic() - begin < 30  # about one second; uncut it takes hours, growing with the square
    assert trained.vocab_size == MIN_VOCAB_SIZE + 40
    assert len(trained.encode(letters[:1000])) < 600


def test_only_runs_that_are_too_long_are_cut_for_training() -> None:
    words = ["x" * 999, *STORY.split(" "), "y" * 400, " " * 900]
    text = " ".join(words * 3)
    assert list(short_words(text)) == [text]
    for long in ("ab" * 5_000, " " * 10_000, f"one {'z' * 2_000} {'z' * 1999}"):
        pieces = list(short_words(long))
        assert "".join(pieces) == long
        assert len(pieces) > 1
        assert max(map(len, pieces)) < 2_500
