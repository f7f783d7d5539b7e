"""One owner for a folder, and who it is."""

import errno
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

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)

_held: list[IO[bytes]] = []


@contextmanager
def folder_lock(folder: str | Path, name: str) -> Iterator[None]:
    """Holds `folder` for this process until the block ends; the kernel frees a dead owner's lock at once.

    Children of this process that outlive it hold nothing.

    Args:
        folder: The folder to own; made if missing.
        name: Lock file in it, such as `run.lock`; the file stays and holds the last owner's pid and host.

    Raises:
        BrokenState: Another process owns it (the line names its pid and host), or the folder cannot be written,
            or its file system has no locks.
    """
    with _opened(Path(folder) / name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BrokenState(
                f"{folder}: in use by {_owner(file.read())}. Wait for it or name another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise BrokenState(
                f"{folder}: its file system has no locks ({error.strerror}), so nothing would keep two runs apart in "
                "it. Name a folder on another file system."
            ) from error
        _held.append(file)
        try:
            with told_if_unwritable(Path(folder) / name):
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            yield
        finally:
            _held.remove(file)


def _let_go() -> None:
    for file in _held:
        file.close()


os.register_at_fork(after_in_child=_let_go)  # a loader's worker lives some seconds longer than a process killed


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
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has not yet written its name, or the file is not of a process of ours
