"""Splits of the hub: parts with exact states, through outages, out of copies, and estimated."""

import gzip
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from tests.hub_repositories import N_PAGES, N_STORIES
from tests.loopback_hub import COMMIT, Faults, Hub

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.text import hub_outages, hub_shards
from scratchlm.text.hub import Access, Split
from scratchlm.text.hub_shards import Shard
from scratchlm.text.parts import Chunk, Row, State
from scratchlm.text.prefetch import prefetch

PAGES = "hf://HuggingFaceFW/fineweb/sample-10BT"


def split(uri: str, column: str = "text", revision: str | None = None, **access: Any) -> Split:
    return Split.at("data.sources.web", uri, revision, column, Access(**access))


def rows(shards: list[Shard]) -> list[Row]:
    return [row for shard in shards for row in remaining(shard)]


def remaining(shard: Shard, state: State | None = None) -> list[Row]:
    return [row for chunk in shard.read(state) for row in chunk.rows]


def joined(chunks: list[Chunk]) -> list[Row]:
    return [row for chunk in chunks for row in chunk.rows]


def write_repository(root: Path, columns: dict[str, list[Any]], kind: str, row_group_size: int = 64) -> None:
    """A repository with one file of `kind`: parquet, jsonl or jsonl.gz."""
    import pyarrow
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    card = "license: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*"
    (root / "README.md").write_text(f"---\n{card}\n---\n")
    path = root / "data" / f"train-00000.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
        return
    lines = "".join(
        json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
    )
    path.write_bytes(gzip.compress(lines.encode()) if kind.endswith(".gz") else lines.encode())


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts even small files into many blocks and chunks, unevenly."""
    monkeypatch.setattr(hub_shards, "_ROWS", 70)
    monkeypatch.setattr(hub_shards, "_BLOCK_BYTES", 2_000)
    monkeypatch.setattr(hub_shards, "_BLOCK_FOOTERS", 0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, in seconds, each of them cut to a hundredth."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        time.sleep(seconds / 100)

    monkeypatch.setattr(hub_outages, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(hub_outages, "_asked_by", {})  # by the tests before
    return waited


# Parts


def test_a_part_is_a_file_and_keeps_the_ids_of_its_rows(hub: Hub) -> None:
    parts = split(PAGES).parts()
    assert [part.label for part in parts] == ["train-0", "train-1"]
    read = rows(parts)
    assert [id for _, id in read] == [f"page-{n}" for n in range(N_PAGES)]
    assert read[7][0].startswith("How to mend bicycle number 7\n")


def test_rows_without_ids_are_numbered_in_their_file(hub: Hub) -> None:
    (part,) = split("hf://roneneldan/TinyStories:validation").parts()
    ids = [id for _, id in remaining(part)]
    assert ids == [f"validation-0:{n}" for n in range(1, N_STORIES["validation"] + 1)]


def test_a_part_can_be_sent_to_another_process_and_opens_nothing_before_it_is_read(hub: Hub) -> None:
    parts = split(PAGES).parts()
    n_requests = hub.n_requests
    sent = pickle.dumps(parts[0])
    assert len(sent) < 1_000
    part = pickle.loads(sent)
    part.read()
    assert hub.n_requests == n_requests
    assert remaining(part) == remaining(parts[0])


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_from_every_state_the_rows_that_follow_are_the_same(hub: Hub, kind: str) -> None:
    assert hub.root
    texts = [f"Row {n}. " * (n % 13) for n in range(320)]
    write_repository(hub.root / "states" / kind, {"text": texts, "number": list(range(320))}, kind)
    (part,) = split(f"hf://states/{kind}").parts()
    chunks = list(part.read())
    assert max(len(chunk.rows) for chunk in chunks) <= 70
    assert joined(chunks) == [(text, f"train-0:{n}") for n, text in enumerate(texts, 1)]
    for number, chunk in enumerate(chunks, 1):
        rest = joined(chunks[number:])
        twice = list(islice(part.read(json.loads(json.dumps(chunk.state))), 1))
        again = remaining(part, twice[-1].state) if twice else []
        assert joined(twice) + again == rest


def test_reading_on_fetches_neither_what_was_read_nor_other_columns(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    assert hub.root
    monkeypatch.setattr(hub_shards, "_BLOCK_BYTES", 1 << 20)
    noise = random.Random(1)
    texts = [noise.randbytes(1_500).hex() for _ in range(4_000)]  # 12 MB
    others = [noise.randbytes(3_000).hex() for _ in range(4_000)]  # 24 MB
    write_repository(hub.root / "large" / "web", {"text": texts, "other": others}, "parquet", row_group_size=400)
    (part,) = split("hf://large/web").parts()
    before = hub.n_data_bytes
    chunks = list(part.read())
    whole = hub.n_data_bytes - before
    assert whole < 18e6
    before, n_before = hub.n_data_bytes, hub.n_data_requests
    *_, last = part.read(chunks[-2].state)
    assert last.rows == chunks[-1].rows
    assert hub.n_data_bytes - before < whole / 4
    assert hub.n_data_requests - n_before < 8


def test_a_file_without_rows_is_read_to_its_end(hub: Hub) -> None:
    import pyarrow
    import pyarrow.parquet

    assert hub.root
    root = hub.root / "empty" / "web"
    write_repository(root, {"text": ["One."]}, "parquet")
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, root / "data" / "train-00001.parquet")
    with pyarrow.parquet.ParquetWriter(root / "data" / "train-00002.parquet", table.schema):
        pass
    assert rows(split("hf://empty/web").parts()) == [("One.", "train-0:1")]


def test_a_state_of_other_blocks_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = split("hf://roneneldan/TinyStories").parts()
    state = next(iter(part.read())).state
    monkeypatch.setattr(hub_shards, "_BLOCK_BYTES", 2_000)
    monkeypatch.setattr(hub_shards, "_BLOCK_FOOTERS", 0)
    with pytest.raises(
        BrokenState, match=r"train-0 is cut into blocks and rows \[4, 250\] now, and was into \[1, 250\]"
    ):
        next(iter(part.read(state)))


# Outages


def fault_cases() -> list[tuple[str, Faults, str]]:
    return [
        ("resets", Faults(reset_every=3), "reset"),
        ("cut bodies", Faults(cut_every=3), "incomplete|without sending complete|closed"),
        ("short bodies", Faults(short_every=3), r"bytes came where [\d,]+ were asked for"),
        ("503", Faults(status_every=3), "HTTP 503"),
        ("429", Faults(status_every=3, status=HTTPStatus.TOO_MANY_REQUESTS, retry_after=7), "HTTP 429"),
        ("hangs", Faults(hang_every=3, hang_seconds=1.0), "timed out"),
    ]


@pytest.mark.parametrize(("faults", "why"), [case[1:] for case in fault_cases()], ids=[c[0] for c in fault_cases()])
@pytest.mark.usefixtures("short_chunks")
def test_rows_are_the_same_however_the_hub_misbehaves(
    hub: Hub,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    faults: Faults,
    why: str,
) -> None:
    parts = split(PAGES).parts()
    expected = rows(parts)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.25)
    hub.behave()
    hub.faults = faults
    capfd.readouterr()
    assert rows(split(PAGES).parts()) == expected
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(waits) > 3
    line = rf"scratchlm: data\.sources\.web: HuggingFaceFW/fineweb: .*({why}).*; asking again in \d+ s"
    for said in lines:
        assert re.fullmatch(line, said), said
    assert set(waits) == ({7.0} if faults.retry_after else {1.0})


@pytest.mark.usefixtures("short_chunks")
def test_an_outage_is_waited_for_longer_and_longer(
    hub: Hub, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    parts = split(PAGES).parts()
    expected = rows(parts)
    chunks = parts[0].read()
    first = next(chunks)
    hub.go_down(seconds=0.7)
    capfd.readouterr()
    assert [*first.rows, *joined(list(chunks)), *remaining(parts[1])] == expected
    assert waits[:6] == [1, 1, 2, 4, 8, 16]  # the first is that of the one request
    assert capfd.readouterr().err.splitlines()[3].endswith("; trying again in 4 s (10 min left)")


def test_an_outage_for_good_ends_in_one_line_and_a_state_to_go_on_from(hub: Hub, waits: list[float]) -> None:
    parts = split(PAGES, retry_seconds=10).parts()
    expected = rows(parts)
    hub.outage = HTTPStatus.BAD_GATEWAY
    with pytest.raises(
        BrokenState,
        match=r"^data\.sources\.web: cannot read HuggingFaceFW/fineweb from the hub \(HTTP 502\)\. .*the same",
    ) as raised:
        rows(parts)
    assert "\n" not in str(raised.value)
    assert waits == [1, 1, 2, 4, 3]
    hub.behave()
    assert rows(parts) == expected


def test_opening_waits_too(hub: Hub, waits: list[float]) -> None:
    hub.outage = HTTPStatus.SERVICE_UNAVAILABLE
    threading.Timer(0.2, hub.behave).start()
    assert split("hf://roneneldan/TinyStories:validation").describe()["revision"] == COMMIT
    assert waits[:3] == [1, 1, 2]


def test_what_cannot_come_right_is_told_at_once(hub: Hub, waits: list[float]) -> None:
    hub.gated.add("roneneldan/TinyStories")
    for uri, said in (("hf://roneneldan/TinyStories", "is gated on the hub"), ("hf://no/such", "no dataset no/such")):
        with pytest.raises(MissingFile, match=said):
            split(uri).describe()
    with pytest.raises(BadValue, match="Available splits"):
        split("hf://HuggingFaceFW/fineweb/sample-10BT:dev").parts()
    assert waits == []


def test_a_hub_that_answered_once_is_waited_for_even_where_nobody_listens(
    hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(self: socket.socket, address: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    asked = split("hf://roneneldan/TinyStories:validation", retry_seconds=5)
    asked.describe()
    huggingface_hub.close_session()
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(BrokenState, match=r"cannot read .* \(\[Errno 111\] Connection refused\)"):
        asked.describe()
    assert waits == [1, 2, 2]


def test_data_that_cannot_be_read_is_asked_for_again_but_not_for_ever(
    hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.root
    root = hub.root / "garbled" / "web"
    write_repository(root, {"text": ["One.", "Two."]}, "parquet")
    (part,) = split("hf://garbled/web").parts()
    path = root / "data" / "train-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(60) + whole[64:])
    with pytest.raises(BrokenState, match="garbled/web sent data that cannot be read"):
        remaining(part)
    assert waits == [1, 2]


def test_a_stream_left_in_the_middle_leaves_no_thread_and_no_connection_behind(hub: Hub) -> None:
    import pyarrow

    def left() -> tuple[int, int]:
        time.sleep(0.2)
        return threading.active_count(), len(os.listdir("/dev/fd"))

    parts = split(PAGES).parts()
    rows(parts)
    before = left()
    for _ in range(5):
        chunks = parts[0].read()
        next(chunks)
        chunks.close()
    assert left() <= before
    assert pyarrow.total_allocated_bytes() < 1 << 20


# Copies


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses every connection, and lists where to."""
    tried: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise AssertionError(f"a connection to {address}")

    huggingface_hub.close_session()
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    return tried


SPLITS = [PAGES, "hf://Salesforce/wikitext/wikitext-103-raw-v1", "hf://roneneldan/TinyStories:validation"]


@pytest.fixture
def copies(hub: Hub, tmp_path: Path) -> str:
    """A folder with what the splits need."""
    prefetch([split(uri) for uri in SPLITS], str(tmp_path / "its [copies]"))
    return str(tmp_path / "its [copies]")


@pytest.mark.parametrize("uri", SPLITS)
def test_a_prefetched_copy_gives_the_same_rows_and_facts_without_a_network(
    hub: Hub, copies: str, uri: str, request: pytest.FixtureRequest
) -> None:
    online = split(uri)
    expected = online.describe(), online.estimate_bytes(), rows(online.parts())
    tried = request.getfixturevalue("no_network")
    for revision in (None, COMMIT):
        for offline in (True, False):
            copied = split(uri, revision=revision, folder=copies, offline=offline)
            assert (copied.describe(), copied.estimate_bytes(), rows(copied.parts())) == expected
    assert tried == []


def test_prefetch_brings_the_files_of_the_split_and_no_others(hub: Hub, copies: str) -> None:
    root = Path(copies, "roneneldan", "TinyStories")
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert [name for name in found if not name.startswith(".cache/")] == [
        "README.md",
        "data/validation-00000-of-00001.parquet",
        "prefetched.json",
    ]


def test_prefetch_twice_fetches_once(hub: Hub, copies: str) -> None:
    n = hub.n_data_requests
    prefetch([split(uri) for uri in SPLITS], copies)
    assert hub.n_data_requests == n


def test_prefetch_adds_a_split_to_a_copy(hub: Hub, copies: str) -> None:
    train = split("hf://roneneldan/TinyStories", folder=copies, offline=True)
    with pytest.raises(MissingFile, match=r"no copy of roneneldan/TinyStories .* Run `scratchlm prefetch -c \.\.\.`"):
        train.describe()
    prefetch([split("hf://roneneldan/TinyStories")], copies)
    assert len(rows(train.parts())) == N_STORIES["train"]
    assert rows(split("hf://roneneldan/TinyStories:validation", folder=copies, offline=True).parts())


def test_prefetch_goes_through_faults(hub: Hub, waits: list[float], tmp_path: Path) -> None:
    hub.faults = Faults(cut_every=2, status_every=3)
    prefetch([split(PAGES)], str(tmp_path))
    hub.behave()
    assert rows(split(PAGES, folder=str(tmp_path), offline=True).parts()) == rows(split(PAGES).parts())


def test_a_prefetch_that_was_cut_off_leaves_nothing_that_counts(hub: Hub, waits: list[float], tmp_path: Path) -> None:
    def run() -> None:
        prefetch([split(PAGES, retry_seconds=2)], str(tmp_path))

    hub.faults = Faults(status_after=1, status=HTTPStatus.BAD_GATEWAY)
    with pytest.raises(BrokenState, match=r"cannot read HuggingFaceFW/fineweb from the hub \(HTTP 502\)"):
        run()
    with pytest.raises(MissingFile, match="no copy of HuggingFaceFW/fineweb"):
        split(PAGES, folder=str(tmp_path), offline=True).describe()
    hub.behave()
    run()
    assert hub.n_data_requests == 1  # the other file was there
    assert split(PAGES, folder=str(tmp_path), offline=True).describe()["revision"] == COMMIT


def test_a_copy_of_another_revision_is_not_used(hub: Hub, copies: str) -> None:
    record = Path(copies, "HuggingFaceFW", "fineweb", "prefetched.json")
    other = "0" * 40
    record.write_text(record.read_text().replace(COMMIT, other))
    with pytest.raises(MissingFile, match=rf"no copy of HuggingFaceFW/fineweb at revision '{COMMIT}'"):
        split(PAGES, revision=COMMIT, folder=copies, offline=True).describe()
    assert split(PAGES, revision=COMMIT, folder=copies).files().root.startswith("hf://")
    assert split(PAGES, folder=copies).describe()["revision"] == other
    prefetch([split(PAGES)], copies)
    assert split(PAGES, folder=copies).describe()["revision"] == COMMIT


def test_a_copy_that_changed_under_its_size_is_told_where_it_breaks_and_brought_anew(hub: Hub, copies: str) -> None:
    path = next(Path(copies).glob("HuggingFaceFW/fineweb/sample/10BT/*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(bytes(64) + whole[64:-2000] + bytes(2000))
    with pytest.raises(BrokenState, match=rf"data\.sources\.web: .*{path.name} cannot be read .*scratchlm prefetch"):
        rows(split(PAGES, folder=copies, offline=True).parts())
    prefetch([split(PAGES)], copies)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("record", ['{"commit": 3}', "[]", "{", "null"])
def test_a_damaged_record_of_a_copy_is_one_line(hub: Hub, copies: str, record: str) -> None:
    path = Path(copies) / "HuggingFaceFW/fineweb/prefetched.json"
    path.write_text(record)
    with pytest.raises(BrokenState, match=r"prefetched\.json is no record of a copy .* Delete it"):
        split(PAGES, folder=copies).describe()


def test_a_copy_that_lost_bytes_is_not_used(hub: Hub, copies: str) -> None:
    path = Path(copies, "HuggingFaceFW", "fineweb", "sample", "10BT", "001_00000.parquet")
    size = path.stat().st_size
    os.truncate(path, 1_000)
    with pytest.raises(
        BrokenState, match=rf"001_00000\.parquet has 1,000 bytes of {size:,}\. Run `scratchlm prefetch`"
    ):
        split(PAGES, folder=copies).parts()
    prefetch([split(PAGES)], copies)
    assert len(rows(split(PAGES, folder=copies).parts())) == N_PAGES


def test_a_copy_made_by_other_means_is_read_and_has_no_revision(hub: Hub, tmp_path: Path) -> None:
    assert hub.root
    folder = tmp_path / "a copy"
    for uri in SPLITS:
        repository = split(uri).repository
        shutil.copytree(hub.root / repository, folder / repository)
        copied = split(uri, folder=str(folder), offline=True)
        assert rows(copied.parts()) == rows(split(uri).parts())
        assert copied.describe() == split(uri).describe() | {"revision": None}
    with pytest.raises(MissingFile, match="at revision 'main'"):
        split(PAGES, revision="main", folder=str(folder), offline=True).describe()


def test_prefetch_says_what_space_it_needs_before_it_starts(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(BrokenState, match=r"bytes are needed and 1,000 are free"):
        prefetch([split(PAGES)], str(tmp_path / "copies"))
    assert not (tmp_path / "copies").exists()


# Estimates


def test_a_repository_without_data_is_told_in_one_line(hub: Hub) -> None:
    assert hub.root
    root = hub.root / "dataless" / "web"
    write_repository(root, {"text": ["One."]}, "jsonl")
    (root / "data" / "train-00000.jsonl").rename(root / "data" / "train.unknown")
    with pytest.raises(MissingFile, match=r"dataless/web has no data files that can be read \("):
        split("hf://dataless/web").describe()


@pytest.mark.parametrize("uri", SPLITS)
def test_the_bytes_of_a_split_are_estimated_within_a_tenth(hub: Hub, uri: str) -> None:
    asked = split(uri)
    n_bytes = sum(len(text.encode()) for text, _ in rows(asked.parts()))
    before = hub.n_data_requests
    assert asked.estimate_bytes() == pytest.approx(n_bytes, rel=0.1)
    assert hub.n_data_requests - before <= 6


def test_the_bytes_of_json_lines_are_what_the_card_says_or_unknown(hub: Hub) -> None:
    assert hub.root
    said = (
        "dataset_info:\n  features:\n  - name: text\n    dtype: string\n"
        "  splits:\n  - name: train\n    num_bytes: 17\n    num_examples: 2"
    )
    for name, info, expected in (("said", said, 9), ("unsaid", "tags: []", None)):
        root = hub.root / "cards" / name
        write_repository(root, {"text": ["One.", "Two.."]}, "jsonl")
        card = (root / "README.md").read_text()
        (root / "README.md").write_text(card.replace("license: mit", f"license: mit\n{info}"))
        assert split(f"hf://cards/{name}").estimate_bytes() == expected


# Ends of processes


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": paths},
    )


OPEN_ONE = """
from scratchlm.text.hub import Split
parts = Split.at("data.sources.web", "hf://HuggingFaceFW/fineweb/sample-10BT", None, "text").parts()
chunks = [part.read() for part in parts]
for chunk in chunks:
    next(chunk)
"""


@pytest.mark.parametrize("end", ["", "import os; os._exit(0)"], ids=["at the end", "at once, as workers do"])
def test_a_process_that_leaves_streams_open_ends_cleanly(hub: Hub, end: str) -> None:
    done = run_python(OPEN_ONE + end)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_two_minutes_of_outage_change_nothing(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    parts = split(PAGES).parts()
    expected = rows(parts)
    hub.go_down(seconds=120)
    assert rows(parts) == expected
    lines = capfd.readouterr().err.splitlines()
    assert [re.findall(r"again in (\d+) s", line)[0] for line in lines] == ["1", "1", "2", "4", "8", "16", "32", "60"]
