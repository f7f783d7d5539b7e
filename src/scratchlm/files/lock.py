"""One owner for a folder, and who it is."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scratchlm.errors import BrokenState
from scratchlm.files.whole import told_if_unwritable

_held: set[IO[bytes]] = set()


@contextmanager
def folder_lock(folder: str | Path, name: str) -> Iterator[None]:
    """Holds `folder` for this process until the block ends; the kernel frees a dead owner's lock at once.

    Args:
        folder: The folder to own; made if missing.
        name: Lock file in it, such as `run.lock`; the file stays and holds the last owner's pid and host.

    Raises:
        BrokenState: Another process owns it (the line names its pid and host), or the folder cannot be written.
    """
    with _opened(Path(folder) / name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BrokenState(
                f"{folder}: in use by {_owner(file.read())}. Wait for it or name another folder."
            ) from None
        with told_if_unwritable(Path(folder) / name):
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _leave_to_parent() -> None:
    """In a forked process: it would hold the lock on after its parent was killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _opened(path: Path) -> IO[bytes]:
    with told_if_unwritable(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below /proc and the like
            raise BrokenState(f"{path.parent}: cannot be written ({error.strerror}). Name another folder.") from error
        return path.open("ab+", buffering=0)  # what a full disk has no room for is not tried again on closing


def _owner(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError):
        return "another process"  # it has opened the file and not yet written its name
