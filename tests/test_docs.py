"""What the documents say of the code, where the code can tell."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from scratchlm.data.preparation import Corpus
from scratchlm.text.cleaning import STEPS, parse_cleaning

CORPUS = (Path(__file__).parents[1] / "docs" / "corpus.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STEPS)
def test_the_corpus_guide_has_every_step_of_cleaning_with_its_arguments(name: str) -> None:
    [row] = re.findall(rf"^\| `{name}` \|.*$", CORPUS, re.MULTILINE)
    for field in fields(STEPS[name]):
        assert f"`{field.name}" in row, f"{name}.{field.name}"


def test_the_corpus_guide_names_no_key_that_is_not_there() -> None:
    known = set(inspect.signature(Corpus).parameters)
    asked = set(re.findall(r"data\.([a-z_]+)`", CORPUS)) - {"verify"}  # of training
    assert asked <= known


def test_the_example_of_cleaning_in_the_corpus_guide_can_be_parsed() -> None:
    import yaml

    [example] = re.findall(r"^    data:\n      cleaning:\n(?:        .*\n)+", CORPUS, re.MULTILINE)
    steps = yaml.safe_load(example)["data"]["cleaning"]
    here = [step for step in steps if (step if isinstance(step, str) else next(iter(step))) in STEPS]
    assert len(parse_cleaning(here)) == len(here)


def test_every_promise_of_the_reliability_page_names_a_test_that_is_there() -> None:
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!fault |---)(.*) \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"([\w/]+\.py)::(test_\w+)", row.split(" | ")[2])
        assert named, row
        for file, name in named:
            assert f"\ndef {name}(" in (tests / file).read_text(encoding="utf-8"), f"{file}::{name}"
