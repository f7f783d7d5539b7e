"""WikiText's lines become articles that read as they were written."""

import pytest

from scratchlm.text.wikitext import articles


def plain(line: str) -> str:
    """One paragraph as it comes out."""
    ((_, text, _),) = articles([f" {line} \n"])
    return text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("A well @-@ known 1 @,@ 234 @.@ 5 m tower .", "A well-known 1,234.5 m tower."),
        ("Yes , he said ; no : why ? Stop !", "Yes, he said; no: why? Stop!"),
        ("It was ( in 1999 ) the first [ sic ] .", "It was (in 1999) the first [sic]."),
        ("The ( so @-@ called ( inner ) ) ring", "The (so-called (inner)) ring"),
        ('He said " yes , now " . She said " no " .', 'He said "yes, now". She said "no".'),
        ('( " Title " ) was " short . "', '("Title") was "short."'),
        ('" First " " Second "', '"First" "Second"'),
        ("The dog 's bone ; they don 't , we 're , O 'Neil", "The dog's bone; they don't, we're, O'Neil"),
        (
            "The archers ' arrows flew over the long stone walls of the town",
            "The archers' arrows flew over the long stone walls of the town",
        ),
        ("They called it ' the old road ' at home .", "They called it 'the old road' at home."),
        ("An ' 80s song and a player ’ s view", "An '80s song and a player’s view"),
        ("From 1914 – 18 and 5 – 6 km", "From 1914–18 and 5–6 km"),
        ("( 15 July 1914 – 23 December 1976 )", "(15 July 1914 – 23 December 1976)"),
        ("At 10 : 30 the score was : 3", "At 10:30 the score was: 3"),
        ("US $ 5 , $ 10 and £ 3 , a 5 % rise", "US$5, $10 and £3, a 5% rise"),
        ("70 ° F and 57 ° 53 ′ N", "70 °F and 57° 53′ N"),
        ("He [ H ] ated [ I ] t and / or R & B", "He [H]ated [I]t and/or R&B"),
        ("And then ... nothing .", "And then ... nothing."),
        ("M ‑ 35 runs north", "M‑35 runs north"),
    ],
)
def test_the_tokenisation_is_undone(line: str, text: str) -> None:
    assert plain(line) == text


def test_headings_belong_to_their_article_and_titles_begin_one() -> None:
    lines = [
        "",
        " = First = \n",
        "",
        " A . \n",
        " B . \n",
        "",
        " = = Part = = \n",
        "",
        " = = = Sub @-@ part = = = \n",
        "",
    ]
    lines += [" C . \n", "", "", " = Second ( film ) = \n", "", " D . \n"]
    assert [article[:2] for article in articles(lines)] == [
        ("First", "First\n\nA.\nB.\n\nPart\n\nSub-part\n\nC."),
        ("Second (film)", "Second (film)\n\nD."),
    ]


def test_paragraphs_are_set_apart_and_list_items_are_not() -> None:
    long = "a " * 50 + "."
    ((_, text, _),) = articles([f" {long} \n", f" {long} \n", " One \n", " Two \n"])
    assert text.count("\n\n") == 2
    assert text.endswith("\n\nOne\nTwo")


def test_a_formula_with_equals_signs_begins_no_article() -> None:
    lines = ["", " = Sums = \n", "", " We write \n", " = x + y = \n", " for it . \n", "", " = a = \n", " more \n"]
    assert [title for title, _, _ in articles(lines)] == ["Sums"]


def test_lines_before_the_first_title_are_kept() -> None:
    assert [article[:2] for article in articles([" a tail . \n", "", " = Title = \n", "", " text \n"])] == [
        ("", "a tail."),
        ("Title", "Title\n\ntext"),
    ]


def test_lines_of_a_text_file_do_as_well_as_rows() -> None:
    rows = ["", " = T = \n", "", " One , two . \n"]
    plain = [" \n", " = T = \n", " \n", " One , two . \n"]
    assert [article[:2] for article in articles(rows)] == [article[:2] for article in articles(plain)]
