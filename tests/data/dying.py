"""Prepares the same bins over and over, killed each time at another call to the operating system: a script for tests.

Prints a line of JSON for each kill: the call, what a reader took for finished bins after it, from how many tokens the
next process went on, and what the folder held in the end. It forks, so it is no part of the test's own process.
"""

import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scratchlm.data import assembly
from scratchlm.data.bins import check_files, is_prepared, read_manifest
from scratchlm.data.preparation import Corpus
from scratchlm.errors import UserError

CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock")


def main() -> None:
    """Takes one argument, JSON: `folder`, `settings`, `old` (those of bins to stand there before, or null), `torn`."""
    asked = json.loads(sys.argv[1])
    folder, old = Path(asked["folder"]), Path(asked["folder"] + "-old")
    settings, fresh = asked["settings"], asked["old"] is not None
    assembly.COMMIT_SECONDS = 0.0
    for library in ("ffbpe", "fastokens", "rensa"):
        with suppress(ImportError):  # here, once for all forks
            importlib.import_module(library)
    if fresh:
        _forked(lambda: Corpus(str(old), **asked["old"]).prepare())
        print(json.dumps({"call": "old", "end": contents(old)}))
    for number in range(1, sys.maxsize):
        shutil.rmtree(folder, ignore_errors=True)
        if fresh:
            shutil.copytree(old, folder)
        noted = folder.with_name("call")

        def dying(number: int = number, noted: Path = noted) -> None:
            _die_at(number, str(folder), asked["torn"], noted)
            Corpus(str(folder), **settings).prepare(fresh)

        died, _ = _forked(dying)
        if not died:
            print(json.dumps({"call": "none", "end": contents(folder)}))
            return
        taken = _taken_by_a_reader(folder)
        _, said = _forked(lambda: Corpus(str(folder), **settings).prepare(fresh))
        found = re.search(r"going on from ([\d,]+) tokens", said)
        went_on_from = int(found[1].replace(",", "")) if found else None
        line = {"call": noted.read_text(), "taken": taken, "from": went_on_from, "end": contents(folder)}
        print(json.dumps(line), flush=True)


def contents(folder: Path) -> dict[str, str]:
    """Name and hash of every file but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "prepare.lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _taken_by_a_reader(folder: Path) -> dict[str, str] | None:
    """The files outside .partial, where a reader would take them for finished bins."""
    if not is_prepared(folder):
        return None
    try:
        check_files(folder, read_manifest(folder))
    except UserError:
        return None
    return {name: hash_ for name, hash_ in contents(folder).items() if not name.startswith(".partial/")}


def _die_at(number: int, folder: str, torn: bool, noted: Path) -> None:
    """Kills this process at the numbered call that touches the folder, before the call is made.

    Args:
        number: Counted from 1.
        folder: Paths below it count, and every fsync.
        torn: Count the renames of temporary files alone, and cut the file to half its length before the kill, as if
            that had come while it was written.
        noted: File to note the call in.
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


def _forked(task: Callable[[], object]) -> tuple[bool, str]:
    """Whether the task was killed, and what it wrote on standard error."""
    reads, writes = os.pipe()
    process = os.fork()
    if not process:
        os.dup2(writes, 2)
        os.close(reads)
        os.close(writes)
        try:
            task()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writes)
    with open(reads, encoding="utf-8") as file:
        said = file.read()
    _, status = os.waitpid(process, 0)
    if status not in (0, signal.SIGKILL):
        sys.exit(f"status {status}: {said}")
    return status == signal.SIGKILL, said


if __name__ == "__main__":
    main()
