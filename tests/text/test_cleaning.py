"""What cleaning keeps, changes and drops."""

import unicodedata

import pytest

from scratchlm.text.cleaning import Cleaner, Deduplicator, content_hash, normalized


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\x00b\x07c\x7fd\x85e\u0080f", "abcdef"),
        ("page one\x0cpage two", "page one\npage two"),
        ("end of line  \t\nnext", "end of line\nnext"),
        ("two  words\t\tthree", "two words three"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("one\n \n \n \ntwo", "one\n\ntwo"),
        ("\n\n  text \n", "text"),
        ("\ufeffstart", "start"),
        ("e\u0301te\u0301", "été"),
        ("half a pair \ud83d here", "half a pair here"),
        ("whole pair 😀 – “quoted” naïve", "whole pair 😀 – “quoted” naïve"),
    ],
)
def test_normalising_leaves_one_spelling(found: str, kept: str) -> None:
    assert normalized(found) == kept


def test_paragraph_breaks_survive() -> None:
    text = "First paragraph.\n\nSecond paragraph,\nwith a line break.\n\n  indented"
    assert normalized(text) == text


@pytest.mark.parametrize(
    "text", ["a \x00 b", "x \n\x00\n\n\n y", "\t\x07 \n", "e\u0301 \u0085\n\n\n\nz  ", "a\x0c\x0c\x0cb \r"]
)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalized(text)
    assert normalized(once) == once
    assert unicodedata.is_normalized("NFC", once)


@pytest.mark.parametrize(
    "text", [" " * 300_000, "x" + "\t" * 300_000 + "y", "x\n" + " " * 300_000 + "y", "x \n" * 100_000]
)
@pytest.mark.timeout(10)
def test_long_runs_of_blanks_take_no_longer_than_text(text: str) -> None:
    kept = normalized(text)
    assert kept.split() == text.split()
    assert normalized(kept) == kept


def test_short_and_empty_documents_are_dropped_and_counted() -> None:
    cleaner = Cleaner(min_document_characters=5, normalize=True)
    assert [cleaner.clean(text) for text in ("12345", "1234", " 1234 ", "", "\n\n")] == [
        "12345",
        None,
        None,
        None,
        None,
    ]
    assert cleaner.dropped == {"too short": 2, "empty": 2}


def test_without_normalising_text_stays_as_it_is_and_an_empty_one_goes() -> None:
    cleaner = Cleaner(min_document_characters=0, normalize=False)
    text = " e\u0301\r\n\x00  \n\n\n\n"
    assert cleaner.clean(text) == text
    assert cleaner.clean("") is None
    assert cleaner.dropped == {"empty": 1}


def test_the_hash_of_a_text_is_the_same_on_every_machine() -> None:
    # What xxhsum -H3 prints for a file with abc in it.
    assert content_hash("abc") == 0x78AF5F94892F3950
    assert content_hash("\ud83d") != content_hash("")


def test_a_copy_is_told_at_second_sight() -> None:
    seen = Deduplicator()
    assert [seen.is_copy(content_hash(text)) for text in ("a", "b", "a", "A", "b")] == [False, False, True, False, True]
