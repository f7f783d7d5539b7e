import hashlib
import json
import pickle
from contextlib import suppress

import numpy as np
import pytest

from scratchlm.data.bins import FORMAT_VERSION, Bin, check_files, read_manifest, sealed, write_manifest
from scratchlm.data.writer import BinWriter
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.files.whole import write_text

END = 0
DOCUMENTS = [([5, 6, 7], 0, 11), ([65_535], 1, 2**64 - 1), ([], 1, 12), ([8, 9], 0, 13)]


@pytest.fixture
def folder(tmp_path):
    with BinWriter(tmp_path, "train", END) as writer:
        for ids, source, content_hash in DOCUMENTS:
            writer.add(ids, source, content_hash)
    write_text(tmp_path / "tokenizer.json", "{}")
    write_manifest(tmp_path, 65_536, {"seed": 1}, {"sources": []})
    return tmp_path


def test_a_bare_memmap_reads_a_bin(folder):
    assert np.memmap(folder / "train.bin", dtype=np.uint16, mode="r").tolist() == [
        5,
        6,
        7,
        END,
        65_535,
        END,
        END,
        8,
        9,
        END,
    ]


def test_the_index_says_where_each_document_starts_and_whose_it_is(folder):
    documents = np.load(folder / "train.docs.npy")
    assert documents["start"].tolist() == [0, 4, 6, 7]
    assert documents["source"].tolist() == [0, 1, 1, 0]
    assert documents["hash"].tolist() == [11, 2**64 - 1, 12, 13]


def test_an_end_of_text_belongs_to_the_document_it_ends(folder):
    positions = np.arange(10).reshape(2, 5)
    assert Bin(folder, "train").source_of(positions).tolist() == [[0, 0, 0, 0, 1], [1, 1, 0, 0, 0]]


def test_a_pickled_bin_carries_no_tokens(folder):
    split = Bin(folder, "train")
    assert split.n_tokens == 10
    assert len(split.documents) == 4
    copy = pickle.loads(pickle.dumps(split))
    assert copy._tokens is None
    assert copy._documents is None
    assert copy.tokens.tolist() == split.tokens.tolist()


@pytest.mark.parametrize("bad", [65_536, 70_000, -1])
def test_an_id_that_uint16_cannot_hold_is_refused(tmp_path, bad):
    with BinWriter(tmp_path, "train", END) as writer:
        writer.add([1, 2], 0, 1)
        with pytest.raises(BadValue, match=rf"data.tokenizer: gave the id {bad:,}.*uint16"):
            writer.add([3, bad], 0, 2)
    assert Bin(tmp_path, "train").tokens.tolist() == [1, 2, END]


def test_a_writer_goes_on_from_what_another_committed_whatever_it_wrote_after_that(tmp_path):
    for folder in ("whole", "stopped"):
        with suppress(KeyboardInterrupt), BinWriter(tmp_path / folder, "train", END) as writer:
            for number, (ids, source, content_hash) in enumerate(DOCUMENTS * 50):
                writer.add(ids, source, content_hash)
                if number == 70:
                    committed = json.loads(json.dumps(writer.commit()))
            writer.flush()
            if folder == "stopped":
                raise KeyboardInterrupt
    with BinWriter(tmp_path / "stopped", "train", END, committed) as writer:
        assert writer.n_documents == 71
        assert writer.documents["hash"].tolist() == [document[2] for document in (DOCUMENTS * 50)[:71]]
        for ids, source, content_hash in (DOCUMENTS * 50)[71:]:
            writer.add(ids, source, content_hash)
    for name in ("train.bin", "train.docs.npy"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert writer.sha256 == hashlib.sha256((tmp_path / "whole" / "train.bin").read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
@pytest.mark.parametrize("name", ["train.bin", "train.docs.npy"])
def test_a_writer_does_not_go_on_from_what_is_not_as_it_was_left(tmp_path, name, damage):
    with BinWriter(tmp_path, "train", END) as writer:
        for document in DOCUMENTS:
            writer.add(*document)
        committed = writer.commit()
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).unlink()
    if damage != "gone":
        (tmp_path / name).write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises(BrokenState, match=name), BinWriter(tmp_path, "train", END, committed):
        pass


def test_a_split_without_documents_has_an_index_of_none(tmp_path):
    with BinWriter(tmp_path, "val", END):
        pass
    assert len(np.load(tmp_path / "val.docs.npy")) == 0


def test_a_folder_without_a_manifest_names_the_verb_that_makes_it(tmp_path):
    with pytest.raises(MissingFile, match="scratchlm prepare"):
        read_manifest(tmp_path / "nowhere")


def test_a_manifest_of_another_version_is_refused(folder):
    manifest = read_manifest(folder) | {"format_version": 99}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(BrokenState, match=rf"version 99.*reads version {FORMAT_VERSION}.*--fresh true"):
        read_manifest(folder)


def test_a_manifest_that_is_no_manifest_is_refused(folder):
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(BrokenState, match="not a manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("part", ["files", "settings", "card", "vocab_size", "tokenizer_sha256"])
def test_a_manifest_that_lacks_a_part_is_refused(folder, part):
    manifest = read_manifest(folder)
    del manifest[part]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BrokenState, match=r"manifest\.json: edited or damaged.*--fresh true"):
        read_manifest(folder)


def test_the_manifest_holds_size_tokens_and_hash_of_each_file(folder):
    written = read_manifest(folder)["files"]
    assert written["train.bin"]["tokens"] == 10
    assert written["train.bin"]["bytes"] == 20
    assert len(written["train.docs.npy"]["sha256"]) == 64


def test_files_as_written_pass_the_check(folder):
    check_files(folder, read_manifest(folder))


def test_a_cut_bin_is_found_by_its_size(folder):
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    with pytest.raises(BrokenState, match=r"train.bin: 18 bytes, and manifest.json says 20"):
        check_files(folder, read_manifest(folder))


def test_a_lost_bin_is_named(folder):
    (folder / "train.bin").unlink()
    with pytest.raises(BrokenState, match=r"train.bin: missing"):
        check_files(folder, read_manifest(folder))


def test_another_tokenizer_is_refused(folder):
    write_text(folder / "tokenizer.json", '{"other": 1}')
    with pytest.raises(BrokenState, match="not the tokenizer of these bins"):
        check_files(folder, read_manifest(folder))
