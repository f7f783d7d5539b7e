"""Where documents come from: every kind of source, its order, and what is said when it cannot be read."""

import contextlib
import gzip
import json
import os
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.hub_repositories import N_ARTICLES, N_PAGES, N_STORIES
from tests.loopback_hub import COMMIT, Hub

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.text.documents import Source, describe_all, parse_sources, parts
from scratchlm.text.documents import describe as describe_within
from scratchlm.text.hub import Access
from scratchlm.text.parts import Row

HASTY = Access(retry_seconds=0)

TEXTS = [f"Text {n}, with an ü.\n\nIts second paragraph." for n in range(25)]


def source(uri: str | Path, **settings: Any) -> Source:
    """One parsed source named `text`."""
    (parsed,) = parse_sources({"text": {"uri": str(uri), **settings}})
    return parsed


def rows(source: Source) -> list[Row]:
    """The rows of a source in their own order."""
    return [row for part in parts(source, HASTY) for chunk in part.read() for row in chunk.rows]


def read(uri: str | Path, **settings: Any) -> list[str]:
    """The texts of a source in their own order."""
    return [text for text, _ in rows(source(uri, **settings))]


def describe(source: Source) -> dict[str, str | None]:
    return describe_within(source, HASTY)


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text, "n": n}) + "\n" for n, text in enumerate(texts)), "utf-8")
    return path


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({column: texts, "n": list(range(len(texts)))}), path)
    return path


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


# What a line of YAML may say


def test_a_source_without_a_name_is_refused() -> None:
    with pytest.raises(BadValue, match=r"^data\.sources\.: a source without a name\. Give it one"):
        parse_sources({"": "a.txt"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("notes.md", r"'notes.md' cannot be read as text\. Name a file that ends in \.txt"),
        ("builtin:novels", r"no source 'builtin:novels'\. There are: builtin:python-docs"),
        ("hf://wikitext", r"is no hub address\. Write hf://owner/name\[/configuration\]\[:split\]"),
        ("https://example.org/a.txt", r"cannot be opened\. Use builtin:NAME, hf://"),
        (7, r"7 names no text\. Give an address"),
        ({"weight": 2}, r"names no text\. Give an address"),
        ({"uri": "a.txt", "wieght": 2}, r"unknown key 'wieght'\. The keys are: uri, weight"),
        ({"uri": "a.txt", "weight": 0}, r"weight=0 is no positive number"),
        ({"uri": "a.txt", "weight": 1e308}, r"weight=1e\+308 is too large.*at most 1,000,000"),
        ({"uri": "a.txt", "weight": float("nan")}, r"weight=nan is no positive number"),
        ({"uri": "a.txt", "weight": True}, r"weight=True is no positive number"),
        ({"uri": "a.txt", "text_column": "body"}, r"text_column='body' is for rows with columns"),
        ({"uri": "a.txt", "revision": "main"}, r"revision='main' is for hub repositories"),
        ({"uri": "a.txt", "documents": "page"}, r"documents='page' is no way to make documents\. The ways are: auto"),
        ({"uri": "a.txt", "documents": "separator"}, r"documents='separator' needs a separator"),
        ({"uri": "a.txt", "documents": "line", "separator": "--"}, r"separator='--' is not used by documents='line'"),
        ({"uri": "a.txt", "separator": ""}, r"separator='' is no text"),
        ({"uri": "a.jsonl", "documents": "line"}, r"are for \.txt files"),
        ({"uri": "a.txt", "documents": "row"}, r"documents='row' is not for \.txt files"),
    ],
)
def test_a_source_that_cannot_work_is_told_in_one_line_with_its_cure(value: Any, said: str) -> None:
    with pytest.raises(BadValue, match=rf"^data\.sources\.mine: .*{said}") as raised:
        parse_sources({"mine": value})
    assert "\n" not in str(raised.value)


def test_all_bad_sources_are_told_at_once() -> None:
    with pytest.raises(BadValue) as raised:
        parse_sources({"a": "x.md", "good": "x.txt", "b": "builtin:nothing"})
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["data.sources.a", "data.sources.b"]


def test_more_sources_than_a_byte_can_number_are_refused() -> None:
    assert len(parse_sources({f"s{n}": "a.txt" for n in range(255)})) == 255
    with pytest.raises(BadValue, match="256 sources, and at most 255"):
        parse_sources({f"s{n}": "a.txt" for n in range(256)})


def test_sources_keep_their_order_and_settings() -> None:
    parsed = parse_sources(
        {"b": "b.txt", "a": {"uri": "hf://o/n/c:test", "weight": 2, "revision": "v1", "text_column": "t"}}
    )
    assert parsed == [Source("b", "b.txt"), Source("a", "hf://o/n/c:test", weight=2.0, revision="v1", text_column="t")]


# Local files


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst", "t.parquet"])
def test_rows_of_every_local_kind_give_the_same_documents(tmp_path: Path, name: str) -> None:
    plain = write_jsonl(tmp_path / "t.jsonl", TEXTS)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    elif name.endswith(".zst"):
        (tmp_path / name).write_bytes(zstd(plain.read_bytes()))
    elif name.endswith(".parquet"):
        write_parquet(tmp_path / name, list(TEXTS))
    documents = rows(source(tmp_path / name))
    assert [text for text, _ in documents] == TEXTS
    assert len({id for _, id in documents}) == len(TEXTS)
    assert documents[0][1].startswith(f"{name}:")


def test_packed_text_in_several_parts_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "b.txt.zst").write_bytes(zstd(b"three ") + zstd(b"four"))
    assert read(tmp_path / "*.txt.*") == ["one two", "three four"]


def test_a_text_file_is_one_document_or_one_a_line_or_split_at_a_separator(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("One.\nStill one.\n====\nTwo.\n====\nThree.\n")
    assert read(path) == [path.read_text()]
    assert read(path, documents="line") == ["One.\n", "Still one.\n", "====\n", "Two.\n", "====\n", "Three.\n"]
    assert read(path, separator="====\n") == ["One.\nStill one.\n", "Two.\n", "Three.\n"]


@pytest.mark.parametrize("separator", ["\n\n", "<|>", "ü"])
def test_a_separator_is_found_wherever_reading_pauses(
    tmp_path: Path, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scratchlm.text.local._CHUNK_BYTES", 3)
    text = separator.join(["a" * 7, "", "bé" * 5, "c"])
    (tmp_path / "t.txt").write_text(text)
    assert read(tmp_path / "t.txt", separator=separator) == text.split(separator)


def test_a_named_column_is_read_and_a_null_is_an_empty_text(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", TEXTS, "body"), text_column="body") == TEXTS
    assert read(write_parquet(tmp_path / "b.parquet", ["x", None], "body"), text_column="body") == ["x", ""]


def test_a_glob_reads_each_file_once_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/deep/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    documents = rows(source(f"{tmp_path}/**/*.txt"))
    assert documents == [(n, n) for n in ("a/1.txt", "a/deep/3.txt", "b/2.txt")]


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    (tmp_path / "part[1].txt").write_text("here")
    assert read(tmp_path / "part[1].txt") == ["here"]


def test_a_text_file_of_wikitext_gives_articles(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" \n = One = \n \n First , here . \n \n \n = Two = \n \n Second . \n")
    assert read(tmp_path / "wiki.txt", documents="wikitext") == ["One\n\nFirst, here.", "Two\n\nSecond."]


@pytest.mark.parametrize(
    ("name", "data", "error", "said"),
    [
        ("a.txt", b"one\ntw\xffo\n", BadValue, r"a\.txt is not UTF-8: line 2 has 0xff as its byte 3\. Convert"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', BadValue, r"a\.jsonl is not UTF-8: line 2 has 0xe9"),
        ("a.jsonl", b"[" * 100_000, BadValue, r"a\.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', BadValue, r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'["text"]\n', BadValue, r"line 1 is no JSON object but list"),
        (
            "a.jsonl",
            b'{"body": "a", "id": 1}\n',
            BadValue,
            r"line 1 has no column 'text'\. Set text_column to one of: body, id",
        ),
        ("a.jsonl", b'{"text": 5}\n', BadValue, r"line 1 has int, not text, in column 'text'"),
        ("a.txt.gz", b"no gzip", BrokenState, r"a\.txt\.gz cannot be read to its end \(Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"x" * 99)[:-9], BrokenState, r"a\.txt\.gz cannot be read to its end"),
        ("a.txt.zst", zstd(os.urandom(9999))[:-99], BrokenState, r"a\.txt\.zst cannot be read to its end"),
        ("a.parquet", b"PAR1 nothing", BrokenState, r"a\.parquet is no whole parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, name: str, data: bytes, error: type[UserError], said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=rf"^data\.sources\.text: .*{said}") as raised:
        read(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_parquet_file_without_the_column_or_with_numbers_in_it_is_refused_before_reading(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"], "body")
    with pytest.raises(BadValue, match=r"has no column 'text'\. Set text_column to one of: body, n"):
        describe(source(path))
    with pytest.raises(BadValue, match=r"has int64, not text, in column 'n'"):
        describe(source(path, text_column="n"))


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(BadValue, match=r"^data\.sources\.text: .*pipe\.txt is no regular file"):
        describe(source(tmp_path / "pipe.txt"))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(BadValue, match=r"has 2 columns named 'text'"):
        describe(source(tmp_path / "t.parquet"))


@pytest.mark.parametrize("at", range(4, 400, 9))
def test_a_damaged_parquet_file_is_one_line_or_harmless(tmp_path: Path, at: int) -> None:
    path = write_parquet(tmp_path / "t.parquet", [f"word {n % 7}" for n in range(500)])
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        assert len(read(path)) <= 500


def test_what_is_not_there_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no file .*nothing\.txt\. Check the path"):
        describe(source(tmp_path / "nothing.txt"))
    with pytest.raises(MissingFile, match=r"no file matches .*\*\.jsonl"):
        describe(source(tmp_path / "*.jsonl"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadValue, match=r"is a folder\. Name its files, such as .*folder\.txt/\*\.txt"):
        describe(source(tmp_path / "folder.txt"))
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(BadValue, match=r"image\.png cannot be read as text"):
        describe(source(tmp_path / "*.p*g"))


def test_every_source_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    sources = parse_sources({"a": str(tmp_path / "a.txt"), "b": str(tmp_path / "b.txt"), "c": "builtin:tiny-tales"})
    with pytest.raises(UserError) as raised:
        describe_all(sources, HASTY)
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["data.sources.a", "data.sources.b"]


# The hub


def test_wikitext_comes_from_the_hub_as_articles_across_files(hub: Hub) -> None:
    documents = rows(source("hf://Salesforce/wikitext/wikitext-103-raw-v1"))
    assert [id for _, id in documents] == [f"Lighthouse {n} (island)" for n in range(N_ARTICLES)]
    text = documents[7][0]
    first_line = 'The Lighthouse 7, called "Old Tom" by the island\'s people, is 17.5 m high.'
    assert text.startswith(f"Lighthouse 7 (island)\n\n{first_line}\n\nHistory\n\nIn 1807 a")
    assert "a well-known keeper (of the north tower) saw 1,007 ships pass by." in text
    assert not any(mark in text for mark in (" ,", " .", "@", " = ", "( ", " )", ' " '))
    assert all(text.endswith(f"once in {n + 3} winters.") for n, (text, _) in enumerate(documents))


def test_rows_of_the_hub_keep_their_own_ids(hub: Hub) -> None:
    documents = rows(source("hf://HuggingFaceFW/fineweb/sample-10BT"))
    assert sorted(id for _, id in documents) == sorted(f"page-{n}" for n in range(N_PAGES))
    number = documents[0][1].removeprefix("page-")
    assert documents[0][0].startswith(f"How to mend bicycle number {number}\n")


def test_a_split_can_be_named(hub: Hub) -> None:
    assert len(read("hf://roneneldan/TinyStories")) == N_STORIES["train"]
    documents = rows(source("hf://roneneldan/TinyStories:validation"))
    assert (len(documents), documents[1][1]) == (N_STORIES["validation"], "validation-0:2")


def test_a_description_names_the_commit_and_the_licence(hub: Hub) -> None:
    for revision in (None, "main", COMMIT):
        assert describe(source("hf://HuggingFaceFW/fineweb/sample-10BT", revision=revision)) == {
            "uri": "hf://HuggingFaceFW/fineweb/sample-10BT",
            "revision": COMMIT,
            "licence": "odc-by",
        }


@pytest.mark.parametrize(
    ("uri", "settings", "error", "said"),
    [
        ("hf://no/such", {}, MissingFile, r"no dataset no/such on the hub\. Check owner and name"),
        (
            "hf://Salesforce/wikitext/wikitext-9",
            {},
            BadValue,
            r"'wikitext-9' not found\. Available: \['wikitext-103-raw-v1'\]",
        ),
        (
            "hf://roneneldan/TinyStories:dev",
            {},
            BadValue,
            r"Bad split: dev\. Available splits: \['train', 'validation'\]",
        ),
        (
            "hf://roneneldan/TinyStories",
            {"revision": "v9"},
            BadValue,
            r"has no revision 'v9'\. Name a branch, tag or commit",
        ),
        (
            "hf://HuggingFaceFW/fineweb/sample-10BT",
            {"text_column": "body"},
            BadValue,
            r"has no column 'body'\. .*: text, id, url\.",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(
    hub: Hub, uri: str, settings: dict[str, str], error: type[UserError], said: str
) -> None:
    with pytest.raises(error, match=rf"^data\.sources\.text: .*{said}") as raised:
        describe(source(uri, **settings))
    assert "\n" not in str(raised.value)


def test_an_outage_of_the_hub_is_told_in_one_line_with_another_way(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # what the client waits between its tries
    hub.outage = HTTPStatus.SERVICE_UNAVAILABLE
    with pytest.raises(
        BrokenState, match=r"cannot read roneneldan/TinyStories from the hub .* or use builtin: sources or"
    ) as raised:
        read("hf://roneneldan/TinyStories")
    assert "\n" not in str(raised.value)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )


def test_streaming_from_the_hub_needs_no_torch(hub: Hub) -> None:
    code = (
        "import sys\n"
        "from scratchlm.text.documents import describe, parse_sources, parts\n"
        "from scratchlm.text.hub import Access\n"
        "source, = parse_sources({'t': 'hf://roneneldan/TinyStories:validation'})\n"
        "describe(source, Access())\n"
        "n = sum(len(chunk.rows) for part in parts(source, Access()) for chunk in part.read())\n"
        "print(n, 'torch' in sys.modules)\n"
    )
    done = run_python(code)
    assert (done.stdout, done.returncode) == ("40 False\n", 0), done.stderr


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_the_line_comes_at_once(environment: dict[str, str]) -> None:
    code = (
        "from scratchlm.errors import UserError\n"
        "from scratchlm.text.documents import describe, parse_sources\n"
        "from scratchlm.text.hub import Access\n"
        "import time\n"
        "start = time.monotonic()\n"
        "try: describe(*parse_sources({'t': 'hf://roneneldan/TinyStories'}), Access(retry_seconds=0))\n"
        "except UserError as error: print(error)\n"
        "assert time.monotonic() - start < 15\n"
    )
    done = run_python(code, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data.sources.t: cannot read roneneldan/TinyStories from the hub (")
    assert "use builtin: sources or local files" in done.stdout
