import hashlib
import json
import shutil

import numpy as np
import pytest

from scratchlm.data.bins import TOKENIZER_FILES, Bin, file_faults, read_manifest, sealed
from scratchlm.data.inspection import check, damage, show
from scratchlm.data.preparation import Corpus
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.text.cleaning import content_hash
from scratchlm.text.tokenizer import load

CONTEXT = 8
BINS = ("train.bin", "val.bin", "test.bin")
INDEXES = ("train.docs.npy", "val.docs.npy", "test.docs.npy")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, story):
    """Bins of two sources with all three splits, as each way of splitting makes them; one source is read twice."""
    root = tmp_path_factory.mktemp("bins")
    sources = {}
    for seed, (name, n) in enumerate({"one": 80, "two": 400}.items()):
        path = root / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"text": story(i, 15 + i % 7, seed) + " \u00e9\u4f60"}) + "\n" for i in range(n))
        )
        sources[name] = str(path)
    for split in ("documents", "tail"):
        Corpus(
            str(root / split),
            sources,
            vocab_size=290,
            context_length=CONTEXT,
            total_tokens=9_000,
            val_fraction=0.1,
            test_fraction=0.1,
            split=split,
        ).prepare()
    return root


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared / "documents", tmp_path / "bins")


@pytest.fixture
def broken(folder, capsys):
    """Checks the folder, and gives the lines about what is broken in it."""

    def run():
        with pytest.raises(SystemExit) as stop:
            check(str(folder))
        assert stop.value.code == 1
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("scratchlm: broken: ")]

    return run


def flip(path, byte, bit):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def signed(folder, **changes):
    """Writes the manifest anew so that sizes and hashes are those of the files, whatever is in them."""
    manifest = read_manifest(folder) | changes
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name.endswith(".bin"):
            entry["tokens"] = len(data) // 2
    manifest["tokenizer_sha256"] = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize("split", ["documents", "tail"])
def test_bins_as_they_were_written_pass_and_show_their_card(prepared, split, capsys):
    card = read_manifest(prepared / split)["card"]
    assert card["sources"][0]["passes"] > 1
    check(str(prepared / split))
    shown = capsys.readouterr()
    assert "achieved" in shown.out
    assert "are as they were written" in shown.out
    assert "broken" not in shown.err


@pytest.mark.parametrize("name", [*BINS, *INDEXES, *TOKENIZER_FILES])
def test_any_flipped_bit_is_found_and_its_file_named(prepared, folder, name):
    draw = np.random.default_rng(1)
    size = (folder / name).stat().st_size
    for byte in [0, size - 1, *draw.integers(0, size, 6)]:
        flip(folder / name, byte, bit := draw.integers(8))
        found = damage(folder, read_manifest(folder))
        assert name in found, (byte, bit)
        assert found[name].startswith(str(folder / name))
        flip(folder / name, byte, bit)
    assert damage(folder, read_manifest(folder)) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda data: data[:-2], r"bytes, and manifest.json says"),
        (lambda data: data[:-1], r"an odd number"),
        (lambda data: data + b"\0\0", r"bytes, and manifest.json says"),
        (lambda data: b"", r"0 bytes, and manifest.json says"),
    ],
)
@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_file_of_another_size_is_named(folder, broken, name, data, said):
    (folder / name).write_bytes(data((folder / name).read_bytes()))
    (line,) = broken()
    assert str(folder / name) in line
    assert said in line


def test_files_that_changed_places_are_told_from_each_other(folder, broken):
    data = (folder / "train.bin").read_bytes()
    size = (folder / "val.bin").stat().st_size
    (folder / "train.bin").write_bytes(data[:size])
    signed(folder)
    (folder / "train.bin").rename(folder / "between")
    (folder / "val.bin").rename(folder / "train.bin")
    (folder / "between").rename(folder / "val.bin")
    lines = broken()
    assert any(f"{folder / 'train.bin'}: not as it was written (it holds val.bin)" in line for line in lines)
    assert any(f"{folder / 'val.bin'}: not as it was written (it holds train.bin)" in line for line in lines)


def test_every_broken_file_has_a_line_of_its_own(folder, broken):
    for name in ("train.bin", "val.docs.npy", "tokenizer.json"):
        flip(folder / name, 200, 1)
    (folder / "test.bin").unlink()
    lines = broken()
    assert len(lines) == 4
    for name in ("train.bin", "val.docs.npy", "tokenizer.json", "test.bin"):
        assert sum(f"broken: {folder / name}:" in line for line in lines) == 1


def test_an_id_past_the_vocabulary_is_found_under_a_manifest_that_agrees(folder, broken):
    ids = np.fromfile(folder / "train.bin", np.uint16)
    ids[[1234, 2345]] = 290, 65_535
    ids.tofile(folder / "train.bin")
    signed(folder)
    (line,) = broken()
    assert f"{folder / 'train.bin'}: id 290 at position 1,234, and the vocabulary has 290 ids" in line


def test_a_manifest_of_another_tokenizer_is_found(folder, prepared, tmp_path, broken):
    sources = {"one": str(prepared / "two.jsonl")}
    Corpus(str(tmp_path / "other"), sources, vocab_size=290, context_length=CONTEXT, val_fraction=0.1, seed=2).prepare()
    for name in TOKENIZER_FILES:
        shutil.copy(tmp_path / "other" / name, folder / name)
    lines = broken()
    assert len(lines) == len(TOKENIZER_FILES)
    (line,) = [line for line in lines if "tokenizer.json: " in line]
    assert f"{folder / 'tokenizer.json'}: not the tokenizer of these bins" in line
    signed(folder)
    (line,) = broken()
    assert f"{folder / 'tokenizer.json'}: reads document 0 of train.bin otherwise than it was written" in line


def test_an_index_that_does_not_follow_the_ends_of_text_is_found(folder, broken):
    path = folder / "train.docs.npy"
    documents = np.load(path)
    documents["start"][7] += 1
    np.save(path, documents)
    signed(folder)
    lines = broken()
    assert any(f"{path}: its documents do not begin where train.bin has its ends of text" in line for line in lines)


def test_an_index_that_goes_back_is_found(folder, broken):
    path = folder / "val.docs.npy"
    documents = np.load(path)
    documents["start"][3] = documents["start"][2]
    np.save(path, documents)
    signed(folder)
    (line,) = broken()
    assert f"{path}: document 2 starts at" in line


def test_a_card_that_counts_otherwise_than_the_index_is_found(folder, broken):
    manifest = read_manifest(folder)
    manifest["card"]["sources"][1]["tokens"]["train"] += 1
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    (line,) = broken()
    assert f"{folder / 'manifest.json'}: its card says" in line
    assert "source 'two'" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "not a manifest"), ("{", "not a manifest"), ('{"format_version": 2}', "edited or damaged")],
)
def test_a_damaged_manifest_is_a_broken_file(folder, broken, text, said):
    (folder / "manifest.json").write_text(text)
    (line,) = broken()
    assert f"{folder / 'manifest.json'}: {said}" in line


def test_a_flipped_bit_in_the_manifest_is_found_wherever_it_is(folder):
    data = (folder / "manifest.json").read_bytes()
    for at in range(0, len(data), 97):
        (folder / "manifest.json").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BrokenState, match=r"manifest\.json: "):
            read_manifest(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_what_stands_beside_the_tokenizer_is_checked_too(folder, broken, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    (line,) = broken()
    assert f"{folder / name}: not as it was written" in line
    (folder / name).unlink()
    (line,) = broken()
    assert f"{folder / name}: missing" in line


def test_a_damaged_card_is_a_broken_file(folder, broken):
    manifest = read_manifest(folder)
    del manifest["card"]["sources"][0]["asked_share"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    (line,) = broken()
    assert f"{folder / 'manifest.json'}: its card is damaged" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda documents: documents[:0], "0 documents that do not span"),
        (lambda documents: documents[1:], "documents that do not span"),
        (lambda documents: documents["start"], "not a document index"),
        (lambda documents: documents.reshape(1, -1), "not a document index"),
    ],
)
def test_the_cheap_check_sees_an_index_that_cannot_be_the_bins(folder, change, said):
    path = folder / "train.docs.npy"
    np.save(path, change(np.load(path)))
    signed(folder)
    assert said in file_faults(folder, read_manifest(folder))["train.docs.npy"]


def test_the_cheap_check_does_not_read_the_bins(folder):
    flip(folder / "train.bin", 1000, 3)
    assert file_faults(folder, read_manifest(folder)) == {}


def test_a_check_reads_in_pieces_of_any_length(prepared, monkeypatch):
    monkeypatch.setattr("scratchlm.data.inspection._CHUNK_BYTES", 6)
    monkeypatch.setattr("scratchlm.data.inspection._CHUNK_DOCUMENTS", 3)
    for split in ("documents", "tail"):
        assert damage(prepared / split, read_manifest(prepared / split)) == {}


def shown(capsys, *arguments, **values):
    show(*map(str, arguments), **values)
    return capsys.readouterr().out


def test_every_position_is_shown_with_its_document_and_source(prepared, capsys):
    folder = prepared / "documents"
    ids = Bin(folder, "val").tokens.tolist()
    documents = np.load(folder / "val.docs.npy")
    end, number = load(folder).end_of_text_id, 0
    for at, id in enumerate(ids):
        if at % 37 == 0:
            lines = shown(capsys, folder, at=at, split="val").splitlines()
            assert lines[0] == f"document {number} of {len(documents)} in val.bin"
            assert lines[1].startswith(f"source {documents[number]['source']}: ")
            assert f"position {at:,}: id {id}, " in lines[3]
        number += id == end


def test_a_document_is_shown_with_its_text_place_and_hash(prepared, capsys):
    folder = prepared / "documents"
    text, entry = shown(capsys, folder, document=5), np.load(folder / "train.docs.npy")[5:7]
    first, behind = entry["start"].tolist()
    assert f"tokens {first:,} to {behind - 1:,}, {behind - first:,} with the end of text" in text
    assert f"hash {entry['hash'][0]:016x}" in text
    written = load(folder).decode(Bin(folder, "train").tokens[first : behind - 1].tolist())
    assert text.endswith(f"\n\n{written}\n")
    assert content_hash(written) == entry["hash"][0]


def test_without_a_number_the_card_is_shown(prepared, capsys):
    assert "achieved" in shown(capsys, prepared / "documents")


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"document": -1}, BadValue, r"--document=-1: there are \d+ documents of train.bin, so give .* from 0 to \d+"),
        ({"document": 10**6}, BadValue, r"--document=1000000: there are"),
        ({"at": 10**6, "split": "val"}, BadValue, r"--at=1000000: there are [\d,]+ tokens of val.bin, so give .* 0 to"),
        ({"at": -1}, BadValue, r"--at=-1: there are"),
        ({"at": 1, "document": 1}, BadValue, r"both are given"),
    ],
)
def test_a_number_that_is_not_there_is_answered_with_the_range(prepared, values, kind, said):
    with pytest.raises(kind, match=said):
        show(str(prepared / "documents"), **values)


def test_a_damaged_document_is_one_line(folder):
    documents = np.load(folder / "train.docs.npy")
    ids = np.fromfile(folder / "train.bin", np.uint16)
    ids[int(documents["start"][3])] = 60_000
    documents["source"][5] = 9
    documents["start"][8] = documents["start"][20]
    np.save(folder / "train.docs.npy", documents)
    ids.tofile(folder / "train.bin")
    show(str(folder), document=1)
    for number in (3, 5, 8):
        with pytest.raises(BrokenState, match=rf"train.bin: document {number} is damaged. scratchlm corpus check"):
            show(str(folder), document=number)
    with pytest.raises(BrokenState, match="document 3 is damaged"):
        show(str(folder), at=int(documents["start"][3]) + 2)


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder):
    manifest = read_manifest(folder)
    del manifest["files"]["test.bin"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(MissingFile, match=r"--split=test: no test.bin.*holds .*val.bin"):
        show(str(folder), at=1, split="test")


@pytest.mark.parametrize("verb", [check, show])
def test_a_folder_without_bins_is_a_mistake_and_no_damage(tmp_path, verb):
    with pytest.raises(MissingFile, match=r"--folder=.*nowhere: no manifest.json there"):
        verb(str(tmp_path / "nowhere"))
