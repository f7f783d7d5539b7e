"""What counts as nearly the same: laws of the keys, on tales that every machine can make."""

import itertools
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from scratchlm.text import near
from scratchlm.text.tales import tales

pytest.importorskip("rensa", reason="near copies need scratchlm[near]")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for (text, _), _ in zip(tales(), range(300), strict=False)]


def changed(text: str, part: float, seed: int) -> str:
    """The text with a part of its words replaced."""
    dice = random.Random(seed)
    return " ".join("other" if dice.random() < part else word for word in text.split(" "))


def likeness(one: str, other: str) -> float:
    """The part of the runs of five words that two texts have in common, counted word by word."""
    runs = [{tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))} for words in (one.split(), other.split())]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def shares_a_key(one: str, other: str, threshold: float = 0.8) -> bool:
    keys = near.band_keys([one, other], threshold)
    return bool((keys[0] == keys[1]).any())


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_pairs_at_the_threshold_are_found_and_pairs_far_below_are_not(threshold: float) -> None:
    n_keys, n_hashes = near.bands(threshold)
    assert near.n_keys(threshold) == n_keys
    assert n_keys * n_hashes <= 128
    assert 1 - (1 - threshold**n_hashes) ** n_keys >= 0.95
    assert 1 - (1 - (threshold - 0.25) ** n_hashes) ** n_keys < 0.6


def test_near_copies_share_a_key_and_other_texts_do_not(texts: list[str]) -> None:
    copies = [changed(text, 0.01, seed) for seed, text in enumerate(texts)]
    alike = [pair for pair in zip(texts, copies, strict=True) if likeness(*pair) >= 0.85]
    assert len(alike) > 150
    assert np.mean([shares_a_key(*pair) for pair in alike]) > 0.95
    far = [pair for pair in itertools.pairwise(texts) if likeness(*pair) < 0.3]
    assert len(far) > 150
    assert np.mean([shares_a_key(*pair) for pair in far]) < 0.01


def test_the_keys_of_a_text_do_not_depend_on_its_neighbours_or_the_process(texts: list[str]) -> None:
    keys = near.band_keys(texts[:20], 0.8)
    assert keys.shape == (20, near.n_keys(0.8))
    assert np.array_equal(near.band_keys(texts[10:20], 0.8), keys[10:])
    code = "from scratchlm.text import near; import json, sys; "
    code += "print(near.band_keys(json.load(sys.stdin), 0.8).ravel().tolist())"
    given = json.dumps(texts[:20])
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(keys.ravel().tolist())


def test_texts_of_a_few_words_are_near_only_to_themselves() -> None:
    short = ["", " ", "a", "b", "a b", "b a", "one two three four", "one two three five", "one  two\nthree four"]
    keys = near.band_keys(short, 0.8)
    same = [[bool((one == other).any()) for other in keys] for one in keys]
    alike = {(i, j) for i in range(len(short)) for j in range(len(short)) if same[i][j]}
    assert alike == {(i, i) for i in range(len(short))} | {(0, 1), (1, 0), (6, 8), (8, 6)}


def test_no_texts_have_no_keys() -> None:
    assert near.band_keys([], 0.8).shape == (0, near.n_keys(0.8))


def test_a_word_is_the_same_wherever_it_stands() -> None:
    """Long texts are hashed in pieces: a word must not know where its piece began, nor how long the one before was."""
    words = [f"word{number}" for number in range(60_000)]
    text = " ".join(words)
    assert len(text) > 2 * near._PIECE_BYTES
    key = near.band_keys([text], 0.8)[0]
    assert np.array_equal(key, near.band_keys([" \n" * 44_444 + "\n\t".join(words)], 0.8)[0])
    assert not (key == near.band_keys(["-".join(words)], 0.8)[0]).any()
    assert near._runs([b"x" * near._PIECE_BYTES * 3])[0] == near._runs([b"  " + b"x" * near._PIECE_BYTES * 3])[0]
    half = " ".join(words[len(words) // 2 :])
    runs, _ = near._runs([text.encode()])
    assert np.array_equal(near._runs([half.encode()])[0], runs[len(words) // 2 :])


def test_every_run_of_five_words_has_a_hash_of_its_own_and_none_goes_over_two_documents() -> None:
    documents = [b"a b c d e f", b"", b"a b c d", b"b c d e f g a b c d e f", b"  x  ", b"c d e f g"]
    runs, offsets = near._runs(documents)
    spelled = [
        " ".join(words[place : place + 5])
        for words in (document.decode().split() for document in documents)
        for place in range(max(1, len(words) - 4))
    ]
    assert len(spelled) == len(runs) == offsets[-1]
    assert len(set(spelled)) == len(set(runs.tolist())) == len(set(zip(spelled, runs.tolist(), strict=True)))
    assert [int(end - start) for start, end in itertools.pairwise(offsets)] == [2, 1, 1, 8, 1, 1]
