"""The built-in sources: there on every machine, in one order, and worth reading."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scratchlm.text.builtin import LICENCES, documents, readable
from scratchlm.text.documents import describe, parse_sources, parts
from scratchlm.text.hub import Access
from scratchlm.text.tales import N_TALES, tales


@pytest.mark.parametrize(("name", "least_bytes"), [("python-docs", 1_500_000), ("package-readmes", 500_000)])
def test_documentation_is_there_in_one_order_under_unique_names(name: str, least_bytes: int) -> None:
    found = list(documents(name))
    assert found == list(documents(name))
    assert len({id for _, id in found}) == len(found)
    assert sum(len(text.encode()) for text, _ in found) > least_bytes


def test_the_language_reference_and_the_standard_library_are_in_it() -> None:
    by_id = {id: text for text, id in documents("python-docs")}
    assert by_id["assert"].startswith('The "assert" statement\n\nAssert statements')
    assert by_id["textwrap#1"].startswith("textwrap\n\nText wrapping and filling.")
    assert "dedent(text)\n\nRemove any common leading whitespace" in by_id["textwrap#1"]


def test_reading_documentation_imports_none_of_it() -> None:
    code = (
        "import sys\n"
        "from scratchlm.text.builtin import documents\n"
        "before = set(sys.modules)\n"
        "n = sum(1 for name in ('python-docs', 'package-readmes') for _ in documents(name))\n"
        "print(n > 100, sorted({'torch', 'datasets', 'pyarrow', 'turtle', 'antigravity'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("True []\n", 0), done.stderr


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ("Title\n=====\n\nText", "Title\n\nText"),
        ("See :class:`Foo`, :meth:`~a.b.c` and :ref:`that one <label>`.", "See Foo, a.b.c and that one."),
        ("``code`` and `a link <https://example.org>`_", "code and a link"),
        ("[text](https://example.org) stays, array[i](x) too", "text stays, array[i](x) too"),
        ("[![build](b.svg)](https://ci)\n<p align='center'>\nText <b>here</b>", "Text <b>here</b>"),
        ("a < b and b > c, List<int>, *args, **kwargs", "a < b and b > c, List<int>, *args, **kwargs"),
    ],
)
def test_marks_that_hinder_reading_go_and_the_rest_stays(found: str, left: str) -> None:
    assert readable(found) == left


@pytest.fixture(scope="module")
def all_tales() -> list[str]:
    return [text for text, _ in tales()]


def test_no_two_tales_are_alike(all_tales: list[str]) -> None:
    assert len(set(all_tales)) == len(all_tales) == N_TALES
    assert sum(len(text) for text in all_tales) > 6_000_000


def test_a_tale_depends_on_its_number_only(all_tales: list[str]) -> None:
    assert [text for text, _ in tales(50)] == all_tales[:50]
    # Made with Python 3.11.7; Random.random() is promised to stay the same.
    assert hashlib.sha256("".join(all_tales[:50]).encode()).hexdigest()[:16] == "e9ca7d0671b34e30"


def test_tales_are_clean_english(all_tales: list[str]) -> None:
    marks = r"[{}\[\]|]|  | [,.!?]|[,.;:]{2}|\?,|!,"
    words = r"\ba [aeiou]|\ban (?!hour)[^aeiou]|\b(?!that\b)(\w+) \1\b|[.!?] (?!went)[a-z]"
    faults = re.compile(f"{marks}|{words}")
    found = Counter(match[0] for text in all_tales for match in faults.finditer(text))
    assert not found
    for text in all_tales:
        paragraphs = text.split("\n\n")
        assert len(paragraphs) == 6
        for paragraph in paragraphs:
            assert paragraph[0].isupper() or paragraph[0] == '"', paragraph
            assert paragraph.endswith((".", "!", "?", '"')), paragraph
            assert paragraph.count('"') % 2 == 0, paragraph


def test_a_boy_is_he_and_a_girl_is_she(all_tales: list[str]) -> None:
    openings = [text.split("\n\n")[0] for text in all_tales]
    boys = [opening for opening in openings if re.search(r"\bboy\b", opening)]
    girls = [opening for opening in openings if re.search(r"\bgirl\b", opening)]
    assert min(len(boys), len(girls)) > 2_000
    assert not [opening for opening in boys if re.search(r"\b([Ss]he|[Hh]er)\b", opening)]
    assert not [opening for opening in girls if re.search(r"\b([Hh]e|[Hh]is)\b", opening)]


@pytest.mark.parametrize("name", LICENCES)
def test_every_built_in_source_can_be_streamed(name: str) -> None:
    (source,) = parse_sources({"text": f"builtin:{name}"})
    assert describe(source, Access()) == {"uri": f"builtin:{name}", "revision": None, "licence": LICENCES[name]}
    read = [row for part in parts(source, Access()) for chunk in part.read() for row in chunk.rows]
    assert read == list(documents(name))
