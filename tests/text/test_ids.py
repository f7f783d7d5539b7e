import pickle

import numpy as np
import pytest

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.text.ids import DocumentStarts, IdFile, ids_hash, open_ids

END, VOCABULARY = 7, 50


def header(magic, version, n):
    words = np.zeros(256, "<i4")
    words[:3] = magic, version, n
    return words.tobytes()


def write_flat(path, ids):
    np.asarray(ids, np.uint16).tofile(path)


def write_with_header(path, ids):
    path.write_bytes(header(20240520, 1, len(ids)) + np.asarray(ids, np.uint16).tobytes())


def write_npy(path, ids):
    np.save(path, np.asarray(ids, np.uint16))


WRITERS = {"flat.bin": write_flat, "header.bin": write_with_header, "array.npy": write_npy}


@pytest.fixture
def ids():
    """Documents of many lengths between single and double separators, one at the very beginning, as in edu_fineweb."""
    draw = np.random.default_rng(3)
    pieces = [[END]]
    for n in draw.integers(1, 40, 30):
        pieces += [draw.integers(8, VOCABULARY, n).tolist(), [END] * int(draw.integers(1, 3))]
    return [id for piece in [*pieces, [9, 9, 9]] for id in piece]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("scratchlm.text.ids._WINDOW_TOKENS", 16)


def documents_said_plainly(ids):
    found, begin = [], 0
    for at, id in enumerate([*ids, END]):
        if id == END:
            if at > begin:
                found.append((begin, ids[begin:at]))
            begin = at + 1
    return found


def part_of(path):
    return IdFile("data.sources.web", str(path), path.name, END, VOCABULARY)


def rows_of(chunks):
    return [(label, row.tolist()) for chunk in chunks for row, label in chunk.rows]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_any_kind_gives_its_documents_without_separators(tmp_path, ids, name):
    WRITERS[name](tmp_path / name, ids)
    assert open_ids("x", tmp_path / name).tolist() == ids
    expected = [(f"{name}:{begin}", document) for begin, document in documents_said_plainly(ids)]
    assert rows_of(part_of(tmp_path / name).read()) == expected


@pytest.mark.parametrize("name", WRITERS)
def test_reading_goes_on_from_any_state(tmp_path, ids, name):
    WRITERS[name](tmp_path / name, ids)
    part = pickle.loads(pickle.dumps(part_of(tmp_path / name)))
    chunks = list(part.read())
    assert len(chunks) > 5
    for i, chunk in enumerate(chunks):
        assert rows_of(part.read(chunk.state)) == rows_of(chunks[i + 1 :])


def test_a_very_long_document_is_cut_the_same_way_from_any_state(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchlm.text.ids._LONGEST_DOCUMENT", 50)
    ids = [10, END, *range(8, 48), *range(8, 48), *range(8, 48), END, 11]
    write_flat(tmp_path / "a.bin", ids)
    chunks = list(part_of(tmp_path / "a.bin").read())
    long = ids[2:-2]
    assert [row for _, row in rows_of(chunks)] == [[10], long[:50], long[50:100], long[100:], [11]]
    for i, chunk in enumerate(chunks):
        assert rows_of(part_of(tmp_path / "a.bin").read(chunk.state)) == rows_of(chunks[i + 1 :])


@pytest.mark.parametrize("ids", [[END, END, END], [END]])
def test_a_file_of_separators_alone_holds_no_document(tmp_path, ids):
    write_flat(tmp_path / "a.bin", ids)
    assert rows_of(part_of(tmp_path / "a.bin").read()) == []


@pytest.mark.parametrize("name", WRITERS)
def test_an_id_past_the_vocabulary_is_named_with_its_position(tmp_path, ids, name):
    ids[100], ids[200] = VOCABULARY, 60_000
    WRITERS[name](tmp_path / name, ids)
    with pytest.raises(BadValue, match=rf"data.sources.web: .*{name} holds the id 50 at position 100, .* below 50\."):
        list(part_of(tmp_path / name).read())


IDS = np.arange(300, dtype=np.uint16)


@pytest.mark.parametrize(
    ("name", "write", "kind", "said"),
    [
        ("a.bin", lambda path: path.write_bytes(b""), BrokenState, "a.bin is empty"),
        ("a.npy", lambda path: path.write_bytes(b""), BrokenState, "a.npy is empty"),
        ("a.bin", lambda path: path.write_bytes(b"abc"), BrokenState, "a.bin has 3 bytes, an odd number"),
        ("a.bin", lambda path: path.write_bytes(b"a"), BrokenState, "a.bin has 1 bytes, an odd number"),
        ("a.bin", lambda path: IDS.astype(np.uint32).tofile(path), BadValue, "every second id in .* 4 bytes"),
        ("a.bin", lambda path: IDS.astype(np.int64).tofile(path), BadValue, "every second id in .* 4 bytes"),
        (
            "a.bin",
            lambda path: path.write_bytes(header(20240801, 7, 300) + IDS.astype(np.uint32).tobytes()),
            BadValue,
            r"holds ids of 4 bytes \(llm.c's file for Llama 3\)",
        ),
        (
            "a.bin",
            lambda path: path.write_bytes(header(20240520, 2, 300) + IDS.tobytes()),
            BadValue,
            "header in version 2, and version 1",
        ),
        (
            "a.bin",
            lambda path: path.write_bytes(header(20240520, 1, 301) + IDS.tobytes()),
            BrokenState,
            "says in its header that it holds 301 ids, and 600 bytes follow",
        ),
        (
            "a.bin",
            lambda path: path.write_bytes(header(20240520, 1, 300) + IDS.tobytes()[:-1]),
            BrokenState,
            "says in its header that it holds 300 ids, and 599 bytes follow",
        ),
        ("a.bin", lambda path: path.write_bytes(header(20240520, 1, 0)), BrokenState, "holds no ids"),
        ("a.bin", lambda path: path.write_bytes(header(20240520, 1, 9)[:500]), BrokenState, "cut short in its header"),
        ("a.npy", lambda path: np.save(path, IDS.astype(np.float32)), BadValue, "array of float32 with 1 dimensions"),
        ("a.npy", lambda path: np.save(path, IDS.astype(np.int64)), BadValue, "array of int64.*astype"),
        ("a.npy", lambda path: np.save(path, IDS.astype(">u2")), BadValue, "array of >u2"),
        ("a.npy", lambda path: np.save(path, IDS.reshape(3, -1)), BadValue, "array of uint16 with 2 dimensions"),
        ("a.npy", lambda path: np.save(path, IDS[:0]), BrokenState, "holds no ids|no whole .npy"),
        ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), BrokenState, "no whole .npy file"),
        ("a.npy", lambda path: IDS.tofile(path), BrokenState, "no whole .npy file"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), BrokenState, "no whole .npy file"),
        ("b.bin", lambda path: None, MissingFile, "no file"),
    ],
)
def test_a_file_that_holds_no_ids_of_two_bytes_is_one_line(tmp_path, name, write, kind, said):
    write(tmp_path / name)
    with pytest.raises(kind, match=said) as refused:
        open_ids("data.sources.web", tmp_path / name)
    assert str(refused.value).startswith("data.sources.web: ")
    assert "\n" not in str(refused.value)


def test_an_npy_cut_short_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", IDS)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    with pytest.raises(BrokenState, match=r"no whole .npy file"):
        open_ids("x", tmp_path / "a.npy")


def test_what_happens_to_look_like_four_byte_ids_in_a_few_ids_is_no_fault(tmp_path):
    write_flat(tmp_path / "a.bin", [5, 0, 6, 0])
    assert open_ids("x", tmp_path / "a.bin").tolist() == [5, 0, 6, 0]


def starts_said_plainly(ids, end):
    """A document begins at 0, and at every id that follows an end of text and is none, once there was text."""
    found = [0] if ids else []
    for at in range(1, len(ids)):
        if ids[at] != end and ids[at - 1] == end and any(id != end for id in ids[:at]):
            found.append(at)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_documents_begin_behind_every_run_of_separators(seed):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, 3, draw.integers(0, 40)).astype(np.uint16)
    cuts = np.sort(draw.integers(0, len(ids) + 1, 5))
    begins = DocumentStarts(0)
    found = [int(start) for piece in np.split(ids, cuts) for start in begins.add(piece)]
    assert found == starts_said_plainly(ids.tolist(), 0)


def test_a_hash_of_ids_is_that_of_their_bytes_wherever_they_lie():
    assert ids_hash(IDS) == ids_hash(np.repeat(IDS, 2)[::2]) != ids_hash(IDS[:-1])
