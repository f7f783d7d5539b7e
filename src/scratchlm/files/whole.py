"""Files that are there whole or not at all: write beside, sync, rename."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from scratchlm.errors import BrokenState

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.ELOOP,
)
_TEMPORARY = ".partial-"  # .<name>.partial-<pid>, in the folder of the file it will become


@contextmanager
def whole_file(path: str | Path, check: Callable[[Path], None] | None = None) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that takes its name when the block ends without an error.

    Args:
        path: The file to make or replace; its folder is made if missing.
        check: Reads the temporary file once it is on the disk, from there where the system can be asked to forget what
            it remembers of it, and raises `BrokenState` where that is not what was written.

    Yields:
        A binary file to write to. When the block ends it is synced to disk, renamed, and the folder synced; after an
        error it is removed and whatever stood at `path` is untouched.

    Raises:
        BrokenState: The disk is full or the folder cannot be written, or `check` says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}")
    try:
        with told_if_unwritable(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if check and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if check:
                check(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # nothing to remove, or no such folder
            temporary.unlink()


@contextmanager
def told_if_unwritable(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Turns an error of the disk or of permissions into the one line of `unwritable`; other errors pass.

    Args:
        path: What is being written.
        temporary: Where its bytes go meanwhile, if not there.
    """
    try:
        yield
    except OSError as error:
        if (told := unwritable(path, error, temporary)) is error:
            raise
        raise told from error


def unwritable(path: str | Path, error: OSError, temporary: str | Path | None = None) -> Exception:
    """The one line for a file that could not be written; errors of another kind come back as they are.

    Args:
        path: The file.
        error: What the system said.
        temporary: Where its bytes went, if not there.
    """
    if error.errno in _NO_SPACE:
        place = Path(temporary or path)
        written = place.stat().st_size if place.is_file() else 0
        return BrokenState(
            f"{path}: no space left to write it ({written:,} bytes written, {_free_bytes(path):,} bytes free there). "
            "Make space and run again."
        )
    if error.errno == errno.EISDIR:
        return BrokenState(f"{path}: cannot be written ({error.strerror}). Move that folder away and run again.")
    if error.errno in _UNUSABLE_PLACE:
        return BrokenState(f"{path}: cannot be written ({error.strerror}). Name a folder that you may write to.")
    return error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder where the system keeps what nobody needs for long; it is gone behind the block.

    Raises:
        BrokenState: It cannot be made, or what the block writes to it finds no space.
    """
    place = os.environ.get("TMPDIR", "/tmp")
    cure = "Make space there, or name another folder in TMPDIR, and run again."
    try:
        folder = tempfile.TemporaryDirectory(prefix="scratchlm-")
    except OSError as error:
        raise BrokenState(
            f"{place}: no temporary file can be written ({_free_bytes(place):,} bytes free). {cure}"
        ) from error
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            told = re.search(r"\(os error (\d+)\)", str(error))  # as libraries in Rust tell it
            if (int(told[1]) if told else error.errno) not in _NO_SPACE:
                raise
            raise BrokenState(f"{place}: no space left ({_free_bytes(place):,} bytes free). {cure}") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: str | Path) -> None:
    """Makes names just created in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(path: str | Path, n_bytes: int) -> None:
    """Refuses to begin a write that cannot fit.

    Args:
        path: Folder or file where the write will go; it need not exist yet.
        n_bytes: Bytes about to be written.

    Raises:
        BrokenState: Less is free there.
    """
    free = _free_bytes(path)
    if free < n_bytes:
        raise BrokenState(f"{path}: {n_bytes:,} bytes are needed and {free:,} are free. Make space and run again.")


def _free_bytes(path: str | Path) -> int:
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Removes what killed writers left in `folder`, and says what that was; call it as the folder's owner."""
    found = sorted(Path(folder).glob(f".*{_TEMPORARY}*"))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return found
