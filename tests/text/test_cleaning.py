"""What cleaning keeps, changes and drops, and the account it gives of that."""

import json
import pickle
import random
import unicodedata
from typing import Any

import pytest

from scratchlm.errors import BadValue
from scratchlm.text.cleaning import Cleaner, content_hash, parse_cleaning
from scratchlm.text.cleaning_report import Report

# What the law of cleaning is about, in small: blanks, line ends, control characters, marks that compose or come in the
# wrong order, characters that NFC replaces, others that look alike and stay, and an astral one.
PIECES = [
    *(
        "a",
        "b",
        " ",
        "  ",
        "\t",
        " \n",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\x0b",
        "\x0c",
        "\x00",
        "\x07",
        "\x7f",
        "\x1c",
        "\x85",
    ),
    *("é", "e\u0301", "\u0301", "\u0344", "\u0308", "\u212b", "\u1100", "\u1161", "\u11a8", "\u0f71\u0f72", "\u0958"),
    *("\u2000", "\u2001", "\u2002", "\u00a0", "\u3000", "\u2028", "“", "–", "€", "Ж", "中", "😀", "\ufeff", "\ud83d"),
]


def spelled(text: str) -> str:
    """`text` after the two steps that change it by default."""
    kept = Cleaner(parse_cleaning(["unicode", "whitespace"])).clean(text)
    return "" if kept is None else kept


def some_texts(seed: int, n: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(PIECES, k=generator.randrange(12))) for _ in range(n)]


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\x00b\x07c\x7fd\x85e\u0080f", "abcdef"),
        ("page one\x0cpage two", "page one\npage two"),
        ("end of line  \t\nnext", "end of line\nnext"),
        ("end of line \nnext", "end of line\nnext"),
        ("two  words\t\tthree", "two words three"),
        ("a\tcolumn", "a\tcolumn"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("one\n \n \n \ntwo", "one\n\ntwo"),
        ("\n\n  text \n", "text"),
        ("\ufeffstart", "start"),
        ("e\u0301te\u0301", "été"),
        ("e\u0301\n\x00t", "é\nt"),
        ("half a pair \ud83d here", "half a pair here"),
        ("whole pair 😀 – “quoted” naïve", "whole pair 😀 – “quoted” naïve"),
        ("\ud83d", ""),
    ],
)
def test_cleaning_leaves_one_spelling(found: str, kept: str) -> None:
    assert spelled(found) == kept


def test_paragraph_breaks_survive() -> None:
    text = "First paragraph.\n\nSecond paragraph,\nwith a line break.\n\n  indented\n\ttabbed"
    assert spelled(text) == text


def test_cleaning_twice_changes_nothing_more() -> None:
    for text in some_texts(seed=1, n=2_000):
        once = spelled(text)
        assert spelled(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert not any(blank in once for blank in ("\r", "\x0b", "\x0c", " \n", "\t\n", "\n\n\n"))
        assert not any(unicodedata.category(character) == "Cc" for character in set(once) - {"\n", "\t"})


def test_a_document_is_cleaned_the_same_alone_and_among_others() -> None:
    texts = some_texts(seed=2, n=3_000)
    steps = parse_cleaning(["unicode", "whitespace", {"length": {"min_characters": 8}}])
    alone = [(Cleaner(steps).clean(text), str(number)) for number, text in enumerate(texts)]
    together = Cleaner(steps).clean_many(texts, [id for _, id in alone])
    assert list(zip(together.texts, together.ids, strict=True)) == [pair for pair in alone if pair[0] is not None]
    assert together.utf8 == [text.encode() for text in together.texts]


def test_every_character_ends_composed() -> None:
    """The search for characters to compose passes whole blocks: none of them may need it, alone or after a letter."""
    for first in range(0, 0x32000, 0x400):
        characters = [chr(point) for point in range(first, first + 0x400) if not 0xD800 <= point < 0xE000]
        texts = [f"e{character}x" for character in characters]
        for around in ("", "Latin letters in plenty, so that this character is a rare one. " * 4):
            kept = Cleaner(parse_cleaning(["unicode"])).clean_many([around + text for text in texts], texts).texts
            assert len(kept) == len(texts)
            assert all(unicodedata.is_normalized("NFC", text) for text in kept)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_long_document_is_cleaned_as_its_lines_are(width: int) -> None:
    """Long texts are looked through in slices: nothing may be lost or missed where one ends."""
    line = "x" * 13 + " " * width + "y" * 7 + "é\n" + " " * width + "z"
    text = "\n".join([line] * 40_000)
    assert spelled(text) == "\n".join([spelled(line)] * 40_000)


@pytest.mark.parametrize(
    "text", [" " * 300_000, "x" + "\t" * 300_000 + "y", "x\n" + " " * 300_000 + "y", "x \n" * 100_000, "é" * 300_000]
)
@pytest.mark.timeout(10)
def test_long_runs_take_no_longer_than_text(text: str) -> None:
    kept = spelled(text)
    assert kept.split() == text.split()
    assert spelled(kept) == kept


def test_by_default_short_and_empty_documents_go() -> None:
    cleaner = Cleaner(parse_cleaning(None))
    texts = ["x" * 64, "x" * 63, " " + "x" * 63 + " ", "", "\n\n"]
    assert [cleaner.clean(text, str(number)) for number, text in enumerate(texts)] == ["x" * 64, None, None, None, None]
    assert cleaner.report.dropped == {"too short": 4}


def test_a_whole_file_may_have_any_length_and_a_row_may_not() -> None:
    steps = parse_cleaning([{"length": {"max_characters": 100}}])
    assert Cleaner(steps).clean("x" * 101) is None
    assert Cleaner(steps, whole_files=True).clean("x" * 101) == "x" * 101
    assert Cleaner(parse_cleaning(None)).clean("x" * 10_000_001) is None
    assert Cleaner(parse_cleaning(None)).clean("x" * 10_000_000) is not None


def test_a_chain_without_steps_leaves_text_as_it_is_and_drops_an_empty_one() -> None:
    cleaner = Cleaner(parse_cleaning([]))
    text = " e\u0301\r\n\x00  \n\n\n\n"
    assert cleaner.clean(text) == text
    assert cleaner.clean("") is None
    assert cleaner.report.dropped == {"empty": 1}


def test_the_report_says_what_each_step_did() -> None:
    cleaner = Cleaner(
        parse_cleaning([{"length": {"min_characters": 3}}, "whitespace", {"length": {"min_characters": 2}}])
    )
    texts = ["a  b", "a", "   ", "é\t\tz", "  x  ", "y    "]
    cleaner.clean_many(texts, [f"f:{number}" for number in range(6)])
    first, blanks, second, empty = cleaner.report.to_json()
    assert first == {
        "step": "length",
        "documents": 6,
        "bytes": sum(len(text.encode()) for text in texts),
        "changed": 0,
        "dropped": {"too short": 1},
        "examples": [{"id": "f:1", "reason": "too short", "text": "a"}],
    }
    assert (blanks["documents"], blanks["changed"], blanks["dropped"]) == (5, 5, {})
    assert (second["documents"], second["bytes"], second["dropped"]) == (5, 3 + 0 + 4 + 1 + 1, {"too short": 3})
    assert [example["id"] for example in second["examples"]] == ["f:2", "f:4", "f:5"]
    assert (empty["documents"], empty["dropped"]) == (2, {})
    table = cleaner.report.table().splitlines()
    assert [line.split()[0] for line in table] == ["cleaning", "length", "whitespace", "length"]
    assert len({len(line) for line in table}) == 1
    assert "length dropped f:1 (too short): 'a'" in cleaner.report.examples()


def test_an_example_is_the_beginning_of_a_document_on_one_line() -> None:
    cleaner = Cleaner(parse_cleaning([{"length": {"min_characters": 10_000}}]))
    cleaner.clean("one\n\ntwo \t " + "word " * 1_000)
    [example] = cleaner.report.to_json()[0]["examples"]
    assert example["text"].startswith("one two word word")
    assert len(example["text"]) <= 160


def test_reports_add_up_to_the_report_of_all() -> None:
    texts = [text * 3 for text in some_texts(seed=3, n=500)]
    ids = [f"t:{number}" for number in range(500)]
    steps = parse_cleaning(["unicode", "whitespace", {"length": {"min_characters": 12}}])
    whole = Cleaner(steps)
    whole.clean_many(texts, ids)
    merged = Report.from_json(json.loads(json.dumps(Cleaner(steps).report.to_json())))
    for start in range(0, 500, 70):
        part = Cleaner(steps)
        part.clean_many(texts[start : start + 70], ids[start : start + 70])
        merged.merge(Report.from_json(json.loads(json.dumps(part.report.to_json()))))
    assert json.dumps(merged.to_json()) == json.dumps(whole.report.to_json())
    assert len(merged.to_json()[2]["examples"]) == 3


def test_a_parsed_chain_is_complete_plain_and_the_same_when_parsed_again() -> None:
    steps = parse_cleaning([{"length": {"min_characters": 3}}, "unicode", {"class_path": "whitespace"}])
    assert steps == [
        {"length": {"min_characters": 3, "max_characters": 10_000_000}},
        {"unicode": {}},
        {"whitespace": {}},
    ]
    assert parse_cleaning(json.loads(json.dumps(steps))) == steps
    assert pickle.loads(pickle.dumps(Cleaner(steps))).clean("a  b") == "a b"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("unicode", "data.cleaning: 'unicode' is no list of steps"),
        (["lenght"], "data.cleaning: step 1, lenght: there is no such step. Did you mean length?"),
        (
            ["unicode", {"length": {"min_chars": 1}}],
            "step 2, length: no argument 'min_chars'. Did you mean min_characters?",
        ),
        ([{"length": {"min_characters": "many"}}], "min_characters='many' does not fit. Give a whole number."),
        ([{"length": {"min_characters": True}}], "min_characters=True does not fit"),
        ([{"length": {"max_characters": 1.5}}], "max_characters=1.5 does not fit. Give a whole number or null."),
        ([{"length": {"min_characters": -1}}], "min_characters=-1 is negative"),
        ([{"length": {"max_characters": 5}}], "max_characters=5 lets nothing through"),
        ([{"unicode": {"form": "NFC"}}], "no argument 'form'. It takes none."),
        ([{"length": [3]}], r"length: \[3\] are no arguments"),
        ([17], "step 1, 17: this is no step"),
        ([{"a": 1, "b": 2}], "this is no step"),
    ],
)
def test_a_chain_that_cannot_work_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        parse_cleaning(spec)


def test_every_fault_of_a_chain_has_its_line() -> None:
    with pytest.raises(BadValue) as caught:
        parse_cleaning(["unicod", {"length": {"min_characters": "x", "most": 1}}, "whitespace", "spaces"])
    assert [line.split(":")[1].split(",")[0] for line in str(caught.value).splitlines()] == [
        " step 1",
        " step 2",
        " step 2",
        " step 4",
    ]


def test_the_hash_of_a_text_is_the_same_on_every_machine() -> None:
    # What xxhsum -H3 prints for a file with abc in it.
    assert content_hash("abc") == content_hash(b"abc") == 0x78AF5F94892F3950
    assert content_hash("\ud83d") != content_hash("")
