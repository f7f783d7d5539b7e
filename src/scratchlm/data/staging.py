"""Where bins are made before they take their place: a folder inside the bins folder that survives a kill.

It holds `plan.json` (what is being made, out of what), then the tokenizer, then growing bins with `commit.json` (how
much of them is whole) and on Ray `blocks/` that wait for their turn, and at last a manifest. Each is written whole, so
that whoever comes next knows where to go on.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scratchlm.data.bins import MANIFEST, SPLIT_FILES, TOKENIZER_FILES, is_prepared, read_manifest, sealed
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.files.lock import folder_lock
from scratchlm.files.whole import remove_leftovers, sha256, sync_folder, told_if_unwritable, write_json

STAGING = ".partial"  # inside the folder, so that renaming into place never crosses a filesystem
LOCK = "prepare.lock"
NEAR_LOG = "near.log"
_PLAN, _COMMIT = "plan.json", "commit.json"


class Staging:
    """The unfinished bins of a folder. Everything but `waits_to_be_published` is for the folder's owner."""

    def __init__(self, folder: str | Path) -> None:
        """Opens nothing.

        Args:
            folder: The bins folder.
        """
        self.folder = Path(folder)
        self.path = self.folder / STAGING
        self.blocks = self.path / "blocks"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the folder. After an error, work that another try can go on from stays; else all is as it was before.

        Raises:
            BrokenState: Another process holds it (the line names it), or it cannot be written.
        """
        was_there, was_locked_before = self.folder.exists(), (self.folder / LOCK).exists()
        with folder_lock(self.folder, LOCK):
            try:
                yield
            except BaseException as error:
                if isinstance(error, BadValue) or "tokenizer" not in self.plan():
                    self.clear()
                    if not was_locked_before:
                        (self.folder / LOCK).unlink(missing_ok=True)
                    if not was_there:
                        with suppress(OSError):  # someone has put a file there meanwhile
                            self.folder.rmdir()
                elif isinstance(error, KeyboardInterrupt):
                    print(f"scratchlm: {self.folder}: the same command goes on from here", file=sys.stderr)
                raise

    def clear(self) -> None:
        """Removes everything that is unfinished."""
        shutil.rmtree(self.path, ignore_errors=True)

    def plan(self) -> dict[str, Any]:
        """What is being made here; empty where nothing is."""
        return _read(self.path / _PLAN)

    def begin(self, plan: dict[str, Any]) -> None:
        """Starts anew with a plan."""
        self.clear()
        with told_if_unwritable(self.path):
            self.path.mkdir()
        write_json(self.path / _PLAN, plan)

    def keep_tokenizer(self) -> None:
        """Notes in the plan that the tokenizer here is whole."""
        write_json(self.path / _PLAN, self.plan() | {"tokenizer": self._tokenizer_hashes()})

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer that was noted is here, each of its files as it was written."""
        noted = self.plan().get("tokenizer")
        return noted is not None and noted == self._tokenizer_hashes()

    def _tokenizer_hashes(self) -> dict[str, str]:
        return {name: sha256(self.path / name) for name in TOKENIZER_FILES if (self.path / name).is_file()}

    def commit(self, state: dict[str, Any]) -> None:
        """Notes how far the bins are whole.

        It is not synced to the disk, for that would wait for all that the bins have written: after a power cut the
        hashes in it tell whether the bins are what it says.
        """
        new = self.path / f"{_COMMIT}.new"
        with told_if_unwritable(new):
            try:
                new.write_text(json.dumps(sealed(state)), encoding="utf-8")
                os.replace(new, self.path / _COMMIT)
            except FileNotFoundError as error:
                raise BrokenState(f"{self.path}: was removed while bins were made in it. Run again.") from error

    def committed(self) -> dict[str, Any]:
        """The last state that was noted; empty where there is none, or one that is not as it was written."""
        remove_leftovers(self.path)
        state = _read(self.path / _COMMIT)
        return state if state == sealed(state) else {}

    def forget_commits(self) -> None:
        """Makes the bins begin anew, under the same plan."""
        (self.path / _COMMIT).unlink(missing_ok=True)

    def forget_blocks(self) -> None:
        """Removes blocks that were made ahead of their turn."""
        shutil.rmtree(self.blocks, ignore_errors=True)

    @property
    def waits_to_be_published(self) -> bool:
        """Whether the bins here are finished: their maker was killed while it moved them into place."""
        return is_prepared(self.path)

    def publish(self) -> None:
        """Moves finished bins into place; until the manifest has followed the rest, the folder counts as not prepared.

        What the folder's old manifest names is replaced, other files stay. After a kill it can be called again.

        Raises:
            BrokenState: The folder cannot be written.
        """
        if not self.waits_to_be_published:  # another process has published them in the meantime
            return
        for name in (_PLAN, _COMMIT, f"{_COMMIT}.new", NEAR_LOG):
            (self.path / name).unlink(missing_ok=True)
        remove_leftovers(self.path)
        new = [path.name for path in self.path.iterdir()]
        with told_if_unwritable(self.folder):
            for name in _replaced_by_new_bins(self.folder):
                (self.folder / name).unlink(missing_ok=True)
            (self.folder / MANIFEST).unlink(missing_ok=True)
            sync_folder(self.folder)
            for name in sorted(new, key=lambda name: name == MANIFEST):
                os.replace(self.path / name, self.folder / name)
            self.path.rmdir()
            sync_folder(self.folder)

    def check_free(self) -> None:
        """Makes sure that publishing takes no file away that something else has put there.

        Raises:
            BadValue: The folder holds a file under a name of ours and no manifest, or a folder under such a name.
        """
        is_ours = self._has_our_manifest or self.waits_to_be_published
        found = [name for name in (MANIFEST, *SPLIT_FILES, *TOKENIZER_FILES) if (self.folder / name).exists()]
        foreign = [name for name in found if not is_ours or (self.folder / name).is_dir()]
        if self.path.is_dir() and not (self.plan() or self._is_ours_by_its_lock or self._is_empty):
            foreign.append(STAGING)
        if foreign:
            raise BadValue(
                f"data.folder={self.folder}: holds {foreign[0]}, which is not of scratchlm's making. Name another "
                "folder."
            )

    @property
    def _has_our_manifest(self) -> bool:
        """Whether the folder's manifest is one of ours."""
        is_one = "format_version" in _read(self.folder / MANIFEST)
        return is_one or (is_prepared(self.folder) and self._is_ours_by_its_lock)

    @property
    def _is_ours_by_its_lock(self) -> bool:
        """Whether a lock of ours speaks for what is damaged in the folder."""
        return (self.folder / LOCK).exists()

    @property
    def _is_empty(self) -> bool:
        """Whether nothing is in the staging folder but what a plan leaves that was never written to its end."""
        return all(path.name.startswith(f".{_PLAN}") for path in self.path.iterdir())


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):  # never written, or damaged: there is nothing to go on from
        return {}
    return value if isinstance(value, dict) else {}


def _replaced_by_new_bins(folder: Path) -> list[str]:
    if not is_prepared(folder):
        return []
    try:
        named = read_manifest(folder)["files"]
    except UserError:  # damaged: what the new bins do not overwrite stays
        named = {}
    return [*(name for name in SPLIT_FILES if name in named), *TOKENIZER_FILES]
