"""Copies of hub repositories on this machine, in folders laid out as the repositories are."""

import json
from pathlib import Path
from typing import Any

from scratchlm.errors import BrokenState
from scratchlm.files.whole import sha256, write_json
from scratchlm.text.hub_files import Files, in_folder

_RECORD = "prefetched.json"  # in the folder of the copy: which commit it is, and which splits of it are whole


def find_copy(
    key: str, folder: str, repository: str, configuration: str | None, split: str, revision: str | None
) -> Files | None:
    """The split in a copy of its repository.

    Args:
        key: What errors call the source.
        folder: The copy is looked for in `folder/owner/name`.
        repository: `owner/name`.
        configuration: As in `hub.Split`.
        split: As in `hub.Split`.
        revision: As in `hub.Split`. A copy that `prefetch` made serves for its commit and the names it was asked by;
            another copy, whose commit nobody knows, only for None.

    Returns:
        None where there is no copy, or one of another revision or without this split.

    Raises:
        BrokenState: A file of the copy is missing or cut short.
    """
    root = Path(folder).expanduser().absolute() / repository
    if not root.is_dir():
        return None
    record = read_record(root)
    if record is None:
        return None if revision else in_folder(str(root), configuration, split)
    if revision not in (None, record["commit"], *record["revisions"]):
        return None
    for one in record["splits"]:
        if (one["configuration"], one["split"]) == (configuration, split):
            _check_sizes(key, root, one["files"])
            return Files(
                str(root),
                record["commit"],
                record["licence"],
                one["format"],
                one["options"],
                list(one["files"]),
                one["text_bytes"],
            )
    return None


def _check_sizes(key: str, root: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            state = f"has {path.stat().st_size:,} bytes of {size:,}" if path.is_file() else "is missing"
            raise BrokenState(f"{key}: {path} {state}. Run `scratchlm prefetch` again.")


def read_record(root: Path) -> dict[str, Any] | None:
    """What `prefetch` noted of a copy; None where it made none there."""
    path = root / _RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("commit", "licence", "revisions", "splits")}
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenState(
            f"{path} is no record of a copy ({error}). Delete it and run `scratchlm prefetch`."
        ) from error


def note_commit(root: Path, files: Files, revision: str | None) -> None:
    """Notes of which commit a copy is going to be; of another one, what was there no longer counts."""
    record = read_record(root)
    if record is None or record["commit"] != files.commit:
        record = {"commit": files.commit, "licence": files.licence, "revisions": [], "splits": []}
    if revision and revision not in record["revisions"]:
        record["revisions"].append(revision)
    write_json(root / _RECORD, record)


def known_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of each file of a copy, as it came."""
    record = read_record(root) or {"splits": []}
    return {name: hash_ for one in record["splits"] for name, hash_ in one.get("sha256", {}).items()}


def note_split(root: Path, configuration: str | None, split: str, files: Files, sizes: dict[str, int]) -> None:
    """Notes that all files of a split are there, and what they hold."""
    record = read_record(root)
    assert record is not None, root
    others = [one for one in record["splits"] if (one["configuration"], one["split"]) != (configuration, split)]
    entry = {
        "configuration": configuration,
        "split": split,
        "format": files.format,
        "options": files.options,
        "text_bytes": files.text_bytes,
        "files": sizes,
        "sha256": {name: sha256(root / name) for name in sizes},
    }
    write_json(root / _RECORD, record | {"splits": [*others, entry]})
