"""Token files of others as a bins folder: what is missing beside them is added, and they stay as they are. No torch."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models

from scratchlm.data.assembly import bar
from scratchlm.data.bins import DOCUMENT, MANIFEST, is_prepared, read_manifest, write_manifest
from scratchlm.data.card import Tally, card_of, warnings_for
from scratchlm.data.inputs import inputs_of
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.files.whole import told_if_unwritable, whole_file, write_text
from scratchlm.text.documents import Source
from scratchlm.text.ids import DocumentStarts, Ids, has_header, ids_hash, open_ids, require_below
from scratchlm.text.tokenizer import KINDS, Tokenizer, load

_META = "meta.pkl"
_META_BYTES = 1 << 24  # 65,536 characters take about a megabyte (chosen, not tuned)
_CHUNK_TOKENS = 1 << 21  # read at once (chosen, not tuned)
_COUNTED_TOKENS = 1 << 20  # of a split, decoded to count characters; the rest has as many a byte (chosen, not tuned)


def is_foreign(folder: str | Path) -> bool:
    """Whether a folder holds train.bin and val.bin that `adopt` could take up, or has taken up."""
    folder = Path(folder)
    if is_prepared(folder):
        try:
            return bool(read_manifest(folder)["card"].get("adopted"))
        except UserError:
            return False
    return all((folder / f"{split}.bin").is_file() for split in ("train", "val"))


def adopt(folder: str | Path, tokenizer: str, context_length: int) -> dict[str, Any]:
    """Makes bins of a folder of token files as nanoGPT's scripts write them: flat uint16, train.bin and val.bin.

    Adds `train.docs.npy`, `val.docs.npy` (and for test.bin, where there is one), `tokenizer.json` and `manifest.json`,
    the manifest last; the token files are not touched. A document ends at the tokenizer's end of text; where that does
    not occur, a file is one document. Call it as the owner of the folder's lock.

    Args:
        folder: The folder.
        tokenizer: Path of the tokenizer that made the files; one of `text.tokenizer.KINDS` stands for the characters
            of `meta.pkl`.
        context_length: Inputs of one window, for the warnings on the card.

    Returns:
        The manifest.

    Raises:
        UserError: No tokenizer is known, a file is none of flat uint16 ids, an id is past the vocabulary, a file of
            theirs would have to be replaced, or the folder cannot be written.
    """
    folder = Path(folder)
    key = f"data.folder={folder}"
    spelling, n_ids = _tokenizer(folder, tokenizer)
    splits = [split for split in ("train", "val", "test") if (folder / f"{split}.bin").is_file()]
    bins = {split: _ids(key, folder / f"{split}.bin") for split in splits}
    _require_free(key, folder, splits, spelling)
    tally, indexes = Tally(), {}
    with bar("reading bins", " tokens", sum(map(len, bins.values()))) as progress:
        for split, ids in bins.items():
            index, n_bytes = _read(key, folder / f"{split}.bin", ids, spelling, n_ids, progress)
            indexes[split] = index
            tally.documents[split], tally.tokens[split] = len(index), len(ids)
            tally.n_bytes += n_bytes
            tally.n_characters += _characters(spelling, ids, n_bytes)
    tally.first_pass_tokens = tally.tokens["train"]
    with told_if_unwritable(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
    for split, index in indexes.items():
        _write_index(folder / f"{split}.docs.npy", index)
    write_text(folder / "tokenizer.json", spelling.to_json())
    settings = {"tokenizer": None if tokenizer in KINDS else tokenizer}
    card = _card(folder, tally, spelling, context_length)
    return write_manifest(folder, spelling.vocab_size, settings, card, inputs_of([], tokenizer))


def require_same_tokenizer(manifest: dict[str, Any], tokenizer: str) -> None:
    """Refuses a `data.tokenizer` that is not the one an adopted folder was taken up with; a kind asks for none.

    Args:
        manifest: Of the folder.
        tokenizer: `data.tokenizer`.

    Raises:
        BadValue: It names another.
    """
    before = manifest["settings"]["tokenizer"] or f"the characters of {_META}"
    if tokenizer not in KINDS and tokenizer != before:
        raise BadValue(
            f"data.tokenizer={tokenizer}: these token files were adopted with {before}. Leave it out, or adopt them "
            "anew: scratchlm prepare --fresh true."
        )


def characters_of(path: str | Path) -> dict[str, int]:
    """The characters of nanoGPT's `meta.pkl` and their ids. No code in it is run: it may hold plain values only.

    Raises:
        BadValue: It holds something else, or no character for some id.
        BrokenState: It cannot be read.
    """
    path = Path(path)
    cure = "Name the tokenizer that made the ids: data.tokenizer=PATH."
    if path.stat().st_size > _META_BYTES:
        raise BadValue(f"{path}: {path.stat().st_size:,} bytes, too many for a table of characters. {cure}")
    try:
        with path.open("rb") as file:
            meta = _PlainValues(file).load()
    except BadValue:
        raise
    except Exception as error:  # damaged pickles raise nearly any kind
        raise BrokenState(f"{path}: cannot be read ({type(error).__name__}: {error}). Copy it again. {cure}") from None
    spelled = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(spelled, dict) or not spelled:
        raise BadValue(f"{path}: holds no stoi, from characters to ids. {cure}")
    for character, id in spelled.items():
        if not (isinstance(character, str) and len(character) == 1) or not isinstance(id, int):
            raise BadValue(f"{path}: stoi spells {character!r} as {id!r}, and characters and ids are known. {cure}")
    if sorted(spelled.values()) != list(range(len(spelled))):
        raise BadValue(f"{path}: the ids of its {len(spelled):,} characters are not 0 to {len(spelled) - 1:,}. {cure}")
    return spelled


class _PlainValues(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers. Whatever else a pickle makes, it first asks for by name, and gets none."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise BadValue(
            f"{_META}: asks for {module_name}.{global_name}, which could run code, and is not read. Name the tokenizer "
            "that made the ids: data.tokenizer=PATH."
        )


def _tokenizer(folder: Path, tokenizer: str) -> tuple[Tokenizer, int]:
    """The tokenizer of the files, and how many ids they may hold."""
    if tokenizer not in KINDS:
        spelling = load(tokenizer)
        return spelling, spelling.vocab_size
    if not (folder / _META).is_file():
        raise BadValue(
            f"data.folder={folder}: holds train.bin and val.bin of others, and no {_META} that says which characters "
            f"their ids are. Name the tokenizer that made them, such as data.tokenizer=gpt2/tokenizer.json; or, to "
            "make bins of your own, data.sources and another data.folder."
        )
    characters = characters_of(folder / _META)
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=characters, merges=[]))
    except (UnicodeError, TypeError):
        raise BadValue(f"{folder / _META}: holds half of a surrogate pair, which no text can. Make it again.") from None
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner), len(characters)


def _ids(key: str, path: Path) -> Ids:
    if has_header(path):
        raise BadValue(
            f"{key}: {path.name} begins with llm.c's header, and a bin has none. Name another data.folder, and give "
            f"the file as a source: --data.sources '{{web: {path}}}', with data.tokenizer=PATH."
        )
    return open_ids(key, path)


def _require_free(key: str, folder: Path, splits: list[str], spelling: Tokenizer) -> None:
    """Refuses to replace a file that no adoption has made; one that was killed may have left some of its own."""
    if is_prepared(folder):
        return
    taken = [f"{split}.docs.npy" for split in splits if not _is_free(folder / f"{split}.docs.npy")]
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and not (tokenizer.is_file() and tokenizer.read_bytes() == spelling.to_json().encode()):
        taken.append(tokenizer.name)
    if taken:
        raise BadValue(
            f"{key}: holds {taken[0]}, which is not of scratchlm's making and would be replaced. Move it to another "
            "folder" + (", and name it there with data.tokenizer." if taken[0] == tokenizer.name else ".")
        )


def _is_free(index: Path) -> bool:
    if not index.exists():
        return True
    try:
        return bool(np.lib.format.open_memmap(index, mode="r").dtype == DOCUMENT)
    except (ValueError, OSError):
        return False


def _read(
    key: str, path: Path, ids: Ids, spelling: Tokenizer, n_ids: int, progress: Any
) -> tuple[NDArray[np.void], int]:
    """The document index of a file, and the bytes of its text."""
    begins = DocumentStarts(spelling.end_of_text_id)
    starts, counts = [], np.zeros(spelling.vocab_size, np.int64)
    for position in range(0, len(ids), _CHUNK_TOKENS):
        chunk = ids[position : position + _CHUNK_TOKENS]
        require_below(key, path, chunk, position, n_ids)
        starts.append(begins.add(chunk))
        counts += np.bincount(chunk, minlength=spelling.vocab_size)
        progress.update(len(chunk))
    index = np.zeros(sum(map(len, starts)), DOCUMENT)
    index["start"] = np.concatenate(starts)
    begin = 0
    for number, end in enumerate([*index["start"][1:].tolist(), len(ids)]):
        index["hash"][number] = ids_hash(ids[begin:end])
        begin = end
    return index, int(counts @ np.array(spelling.bytes_of_ids()))


def _characters(spelling: Tokenizer, ids: Ids, n_bytes: int) -> int:
    text = spelling.decode(ids[:_COUNTED_TOKENS].tolist())
    return len(text) if len(ids) <= _COUNTED_TOKENS else round(n_bytes * len(text) / len(text.encode()))


def _write_index(path: Path, index: NDArray[np.void]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(DOCUMENT), "fortran_order": False, "shape": index.shape}
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(index.view(np.uint8).data)  # np.save would hide a full disk: its OSError carries no errno


def _card(folder: Path, tally: Tally, spelling: Tokenizer, context_length: int) -> dict[str, Any]:
    """The corpus card, with the folder as the one source; the index must be in place."""
    source = Source(folder.resolve().name or "adopted", str(folder))
    facts: dict[str, Any] = {"uri": str(folder), "revision": None, "licence": None}
    for_validation = tally.tokens["val"] / tally.tokens.total()
    card = card_of(folder, [source], [facts], [tally], spelling, None, for_validation) | {"adopted": True}
    return card | {"warnings": warnings_for({"card": card}, context_length)}
