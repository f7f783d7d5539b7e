"""The uint16 files, their document index and manifest; nothing else knows their bytes.

A bins folder holds, for each split, `<split>.bin` (little-endian uint16 ids with no header, each document followed by
the end of text) and `<split>.docs.npy` (one record a document), then `tokenizer.json` and `manifest.json`. The manifest
is written last and removed first: a folder without it is not prepared.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchlm.errors import BrokenState, MissingFile
from scratchlm.files.whole import sha256, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SPLIT_FILES = tuple(f"{split}.{kind}" for split in ("train", "val", "test") for kind in ("bin", "docs.npy"))
_BESIDE_TOKENIZER = ("vocab.json", "merges.txt")
TOKENIZER_FILES = ("tokenizer.json", *_BESIDE_TOKENIZER)
MAX_VOCAB_SIZE = 1 << 16  # what uint16 can name
CURE = "Copy the folder again, or make it anew with scratchlm prepare --fresh true -c YOUR.yaml."

TOKEN = np.dtype("<u2")
DOCUMENT = np.dtype([("start", "<u8"), ("source", "u1"), ("hash", "<u8")])


def index_header(n_documents: int) -> bytes:
    """The first bytes of an index file; numpy pads them, so that they are as many for any number of documents."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(DOCUMENT), "fortran_order": False, "shape": (n_documents,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


class Bin:
    """One split, read-only. Files are mapped at first use and never travel with a pickle: a worker maps them anew."""

    def __init__(self, folder: str | Path, split: str) -> None:
        """Remembers the files; opens nothing.

        Args:
            folder: The bins folder.
            split: `train`, `val` or `test`.
        """
        self.folder, self.split = Path(folder), split
        self._tokens: NDArray[np.uint16] | None = None
        self._documents: NDArray[np.void] | None = None
        self._starts: NDArray[np.uint64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokens": None, "_documents": None, "_starts": None}

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All ids of the split, (n_tokens,), as a read-only memory map."""
        if self._tokens is None:
            self._tokens = np.memmap(self.folder / f"{self.split}.bin", TOKEN, mode="r")
        return self._tokens

    @property
    def documents(self) -> NDArray[np.void]:
        """One record a document, in order: `start` (position of its first id), `source`, `hash`."""
        if self._documents is None:
            self._documents = np.load(self.folder / f"{self.split}.docs.npy", mmap_mode="r")
        return self._documents

    @property
    def n_tokens(self) -> int:
        """Ids in the split, ends of text included."""
        return len(self.tokens)

    def source_of(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Source of each position; an end of text belongs to the document it ends.

        Args:
            positions: Positions in the split, of any shape.

        Returns:
            Numbers of sources, of the same shape.
        """
        if self._starts is None:
            self._starts = np.ascontiguousarray(self.documents["start"])  # searchsorted would copy it at every call
        found = np.searchsorted(self._starts, positions.astype(np.uint64), side="right") - 1
        sources: NDArray[np.uint8] = self.documents["source"][found]
        return sources


def write_manifest(
    folder: str | Path,
    vocab_size: int,
    settings: dict[str, Any],
    card: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    hashes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Closes a bins folder: hashes the files in it and writes the manifest.

    Args:
        folder: The folder, with its bins and tokenizer.json in place.
        vocab_size: Ids of the tokenizer.
        settings: What shaped the bins; a later `prepare` compares its own with them.
        card: The corpus card.
        inputs: What the files that the bins were made from looked like; a later `prepare` warns where they differ.
        hashes: Name of a file to its SHA-256, where that is known and need not be computed.

    Returns:
        The manifest.
    """
    folder = Path(folder)
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for name in (*SPLIT_FILES, *_BESIDE_TOKENIZER) if (path := folder / name).is_file()):
        n_bytes = path.stat().st_size
        files[path.name] = {"bytes": n_bytes, "sha256": (hashes or {}).get(path.name) or sha256(path)}
        if path.suffix == ".bin":
            files[path.name]["tokens"] = n_bytes // TOKEN.itemsize
    manifest = sealed(
        {
            "format_version": FORMAT_VERSION,
            "vocab_size": vocab_size,
            "tokenizer_sha256": sha256(folder / "tokenizer.json"),
            "files": files,
            "settings": settings,
            "inputs": inputs or {},
            "card": card,
        }
    )
    write_json(folder / MANIFEST, manifest)
    return manifest


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the SHA-256 of all that is in it, by which a later change is told."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    data = json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()
    return rest | {"sha256": hashlib.sha256(data).hexdigest()}


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder holds a manifest, so was written to its end."""
    return (Path(folder) / MANIFEST).exists()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a bins folder.

    Raises:
        MissingFile: There is none.
        BrokenState: It is not as it was written, or another version of scratchlm wrote it.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except PermissionError:
        raise
    except OSError as error:
        raise MissingFile(
            f"data.folder={folder}: no {MANIFEST} there, so no bins. Make them with scratchlm prepare."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenState(
            f"{path}: not a manifest ({error}). Make the bins anew with scratchlm prepare --fresh true -c YOUR.yaml."
        ) from error
    if version != FORMAT_VERSION:
        raise BrokenState(
            f"{path}: its format is version {version}, and this scratchlm reads version {FORMAT_VERSION}. "
            "Make the bins anew with scratchlm prepare --fresh true -c YOUR.yaml."
        )
    if manifest != sealed(manifest):
        raise BrokenState(f"{path}: edited or damaged since it was written. {CURE}")
    return manifest


def check_files(folder: str | Path, manifest: dict[str, Any]) -> None:
    """The cheap check that every opening makes. Bins are not read.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Raises:
        BrokenState: The first of the `file_faults`.
    """
    for fault in file_faults(folder, manifest).values():
        raise BrokenState(fault)


def file_faults(folder: str | Path, manifest: dict[str, Any]) -> dict[str, str]:
    """What is wrong as far as sizes, the head of an index and the tokenizer's hash tell.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Returns:
        Name of a file -> one line that begins with its path.
    """
    found = {}
    for name in manifest["files"]:
        if fault := _file_fault(Path(folder) / name, manifest["files"]):
            found[name] = f"{Path(folder) / name}: {fault}. {CURE}"
    tokenizer = Path(folder) / "tokenizer.json"
    if not tokenizer.is_file():
        found["tokenizer.json"] = f"{tokenizer}: missing. {CURE}"
    elif (now := sha256(tokenizer)) != (written := manifest["tokenizer_sha256"]):
        found["tokenizer.json"] = (
            f"{tokenizer}: not the tokenizer of these bins (SHA-256 {now[:12]}, not {written[:12]}). {CURE}"
        )
    return found


def _file_fault(path: Path, files: dict[str, dict[str, Any]]) -> str:
    written = files[path.name]
    if not path.is_file():
        return f"missing, though {MANIFEST} names it"
    n_bytes = path.stat().st_size
    if path.suffix == ".bin" and n_bytes % TOKEN.itemsize:
        return f"{n_bytes:,} bytes, an odd number, and an id takes {TOKEN.itemsize} (uint16)"
    if n_bytes != written["bytes"]:
        return f"{n_bytes:,} bytes, and {MANIFEST} says {written['bytes']:,}"
    if path.suffix == ".bin":
        told = written["tokens"]
        return "" if n_bytes == told * TOKEN.itemsize else f"{n_bytes:,} bytes, and {MANIFEST} says {told:,} tokens"
    if path.name in TOKENIZER_FILES:
        return ""
    bin_ = files.get(path.name.removesuffix(".docs.npy") + ".bin")
    return _index_fault(path, bin_["tokens"]) if bin_ else ""


def _index_fault(path: Path, n_tokens: int) -> str:
    try:
        documents = np.lib.format.open_memmap(path, mode="r")
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError) as error:
        return f"not a document index ({str(error).splitlines()[0] if str(error) else 'empty'})"
    if documents.dtype != DOCUMENT or documents.ndim != 1:
        return f"not a document index (an array of {documents.dtype})"
    if bool(n_tokens) != bool(len(documents)) or (
        n_tokens and (documents["start"][0] != 0 or documents["start"][-1] >= n_tokens)
    ):
        return f"{len(documents):,} documents that do not span the {n_tokens:,} tokens of its bin"
    return ""
