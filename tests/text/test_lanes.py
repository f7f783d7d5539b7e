"""The order of a source, and the law of every kind of part and lane: left anywhere, it goes on with the same rows."""

import gzip
import json
import os
import random
import zlib
from itertools import islice, pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from scratchlm.text import builtin, local
from scratchlm.text.lanes import Lane, lanes, permutation
from scratchlm.text.parts import Chunk, Part, Row
from scratchlm.text.wikitext import Articles


class Numbers:
    """A part of rows `name-0`, `name-1`, ... in chunks of three."""

    def __init__(self, label: str, n: int) -> None:
        self.label, self.n = label, n

    def read(self, state: int | None = None):  # type: ignore[no-untyped-def]
        for start in range(state or 0, self.n, 3):
            stop = min(start + 3, self.n)
            yield Chunk([(f"{self.label}-{n}", str(n)) for n in range(start, stop)], stop)


def in_turn(own: list[Lane]) -> list[str]:
    """The texts of lanes, a block of each in turn."""
    streams, found = [lane.blocks() for lane in own], []
    while streams:
        for stream in list(streams):
            if block := next(stream, None):
                found += [text for text, _ in block[0]]
            else:
                streams.remove(stream)
    return found


def order(seed: int = 1, shuffle_documents: int = 10, name: str = "web") -> list[str]:
    return in_turn(lanes(name, [Numbers(str(part), 10) for part in range(4)], seed, shuffle_documents))


def test_the_order_is_a_permutation_that_only_the_arguments_decide() -> None:
    kept = order(shuffle_documents=0)
    assert kept == [f"{part}-{n}" for part in range(4) for n in range(10)]
    assert sorted(order()) == kept
    assert order() == order()
    orders = [order(), order(seed=2), order(name="books"), order(shuffle_documents=7)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_documents_are_permuted_inside_blocks_and_parts_as_wholes() -> None:
    parts = [text.split("-")[0] for text in order()]
    assert [len(set(parts[start : start + 10])) for start in range(0, 40, 10)] == [1, 1, 1, 1]
    assert [parts[start] for start in range(0, 40, 10)] != sorted(set(parts))
    assert order()[:10] != sorted(order()[:10])


def test_the_order_is_the_same_on_every_machine() -> None:
    # Made with numpy 2.4.6, whose Philox is that of Random123.
    assert permutation(8, [7, zlib.crc32(b"text") << 32, 1]) == [5, 6, 4, 0, 2, 7, 1, 3]


def test_many_parts_share_eight_lanes() -> None:
    own = lanes("web", [Numbers(str(part), 1) for part in range(20)], 1, 100)
    assert sorted(len(lane.parts) for lane in own) == [2] * 4 + [3] * 4
    assert len({part.label for lane in own for part in lane.parts}) == 20


def test_a_block_ends_at_its_documents_or_at_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane([Numbers("a", 10)], 4, [1, 1])
    assert [len(rows) for rows, _ in lane.blocks()] == [4, 4, 2]
    monkeypatch.setattr("scratchlm.text.lanes._BLOCK_CHARACTERS", 6)
    assert [len(rows) for rows, _ in lane.blocks()] == [2, 2, 2, 2, 2]


@pytest.mark.parametrize("shuffle_documents", [0, 1, 4, 7, 100])
def test_a_lane_goes_on_from_every_cursor_with_the_same_blocks(shuffle_documents: int) -> None:
    lane = Lane([Numbers("a", 7), Numbers("b", 0), Numbers("c", 11)], shuffle_documents, [1, 1])
    blocks = list(lane.blocks())
    for n, (_, cursor) in enumerate(blocks, 1):
        stored = json.loads(json.dumps(cursor))
        assert [rows for rows, _ in lane.blocks(stored)] == [rows for rows, _ in blocks[n:]]


# Parts


def goes_on(part: Part) -> list[Row]:
    """The rows of a part, after making sure that reading goes on from each of its states."""
    chunks = list(part.read())
    for n, chunk in enumerate(chunks, 1):
        rest = [row for later in part.read(json.loads(json.dumps(chunk.state))) for row in later.rows]
        assert rest == [row for later in chunks[n:] for row in later.rows]
    return [row for chunk in chunks for row in chunk.rows]


LINES = [f"Line {n} " + "é" * (n % 7) * 5 for n in range(60)]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst", "t.parquet", "t.txt", "t.txt.gz"])
def test_every_local_kind_goes_on_from_every_state(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHUNK_BYTES", 200)
    monkeypatch.setattr(local, "_PARQUET_ROWS", 7)
    monkeypatch.setattr(local, "PART_BYTES", 500)
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": LINES}), path, row_group_size=11)
    else:
        lines = [json.dumps({"text": line}) for line in LINES] if ".jsonl" in name else LINES
        data = "".join(line + "\n" for line in lines).encode()
        packed = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}
        path.write_bytes(packed.get(path.suffix, bytes)(data))
    found = local.parts("data.sources.t", str(path), "text", None, by_line=True)
    rows = [row for part in found for row in goes_on(part)]
    assert [text.removesuffix("\n") for text, _ in rows] == LINES
    assert len({id for _, id in rows}) == len(LINES)
    if path.suffix in (".jsonl", ".txt"):
        assert len(found) > 3  # byte ranges


def test_the_ranges_of_a_file_hold_each_line_once_wherever_they_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    dice = random.Random(0)
    for _ in range(20):
        lines = ["x" * dice.choice([0, 1, 2, 30]) + "\n" for _ in range(20)]
        path.write_text("".join(lines) + "end")
        size = path.stat().st_size
        cuts = sorted({0, size, *(dice.randrange(size) for _ in range(6))})
        ranges = pairwise(cuts)
        found = [local.Lines("k", str(path), "t", None, start, stop) for start, stop in ranges]
        assert [text for part in found for text, _ in goes_on(part)] == [*lines, "end"]


def test_pieces_go_on_from_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHUNK_BYTES", 50)
    text = "\n==\n".join(LINES)
    (tmp_path / "t.txt").write_text(text)
    (pieces,) = local.parts("k", str(tmp_path / "t.txt"), "text", "\n==\n", by_line=False)
    assert goes_on(pieces) == [(line, f"t.txt:{n}") for n, line in enumerate(LINES, 1)]
    (whole,) = local.parts("k", str(tmp_path / "t.txt"), "text", None, by_line=False)
    assert goes_on(whole) == [(text, "t.txt")]


def test_a_builtin_source_goes_on_from_every_state() -> None:
    rows = goes_on(builtin.Part("tiny-tales"))
    assert rows == list(builtin.documents("tiny-tales"))


class Rows:
    """A part of given rows in chunks of two."""

    label = "rows"

    def __init__(self, rows: list[str]) -> None:
        self.rows = rows

    def read(self, state: int | None = None):  # type: ignore[no-untyped-def]
        for start in range(state or 0, len(self.rows), 2):
            yield Chunk([(row, str(start)) for row in self.rows[start : start + 2]], start + 2)


def test_articles_go_on_from_every_state_across_parts() -> None:
    lines = ["", "Before any title .", ""]
    for n in range(9):
        lines += [f" = Title {n} = ", "", f" Paragraph {n} . ", "", " = = Section = = ", "", *["More ."] * (n % 4), ""]
    for cut in (0, 4, 17, 18, 19, len(lines)):
        rows = goes_on(Articles([Rows(lines[:cut]), Rows([]), Rows(lines[cut:])]))
        assert [id for _, id in rows] == ["", *(f"Title {n}" for n in range(9))]
        assert "Before any title." in rows[0][0]


def test_an_interrupted_reading_closes_its_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\ntwo\n" * 10_000)
    (part,) = local.parts("k", str(tmp_path / "t.txt"), "text", None, by_line=True)
    n_open = len(os.listdir("/dev/fd"))
    chunks = part.read()
    assert len(list(islice(chunks, 1))) == 1
    assert len(os.listdir("/dev/fd")) == n_open + 1
    del chunks
    assert len(os.listdir("/dev/fd")) == n_open
