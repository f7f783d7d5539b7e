"""Forks of a process that has imported everything already, killed at a chosen call to the operating system.

A module for scripts that a test starts: they fork, so they are no part of the test's own process.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock")


def fork() -> tuple[int, str] | None:
    """None in the child; in the parent, once the child has ended, its status and what it wrote on standard error.

    The status is minus the signal's number where one ended it.
    """
    reads, writes = os.pipe()
    sys.stderr.flush()
    sys.stdout.flush()
    process = os.fork()
    if not process:
        os.dup2(writes, 2)
        os.close(reads)
        os.close(writes)
        return None
    os.close(writes)
    with open(reads, encoding="utf-8") as file:
        said = file.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), said


def forked(task: Callable[[], object]) -> tuple[bool, str]:
    """Whether the task was killed, and what it wrote on standard error."""
    ended = fork()
    if ended is None:
        try:
            task()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status, said = ended
    if status not in (0, -signal.SIGKILL):
        sys.exit(f"status {status}: {said}")
    return status == -signal.SIGKILL, said


def die_at(number: int, folder: str, noted: Path, torn: bool = False) -> None:
    """Kills this process at the numbered call that touches the folder, before the call is made.

    Args:
        number: Counted from 1.
        folder: Paths below it count, and every fsync.
        noted: File to note the call in.
        torn: Count the renames of temporary files alone, and cut the file to half its length before the kill, as if
            that had come while it was written.
    """
    left = number

    def count(call: str, path: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            descriptor = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, f"{call} {path}".encode())
            if torn:
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(call: str, arguments: tuple[Any, ...]) -> None:
        if left <= 0 or call not in CALLS or (call == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return  # a kill before a call that changes nothing is a kill before the next one
        path = str(arguments[0])
        if call == "open" and path.endswith(".new"):
            return  # nobody reads it before it is renamed
        if torn:
            if call == "os.rename" and (".partial-" in path or path.endswith(".new")):
                count(call, path)
        elif call == "fcntl.flock" or path.startswith(folder):
            count(call, path)

    sys.addaudithook(hook)
    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count("os.fsync", "")
        fsync(descriptor)

    if not torn:
        os.fsync = counted_fsync
