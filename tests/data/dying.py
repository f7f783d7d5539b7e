"""Prepares the same bins over and over, killed each time at another call to the operating system: a script for tests.

Prints a line of JSON for each kill: the call, what a reader took for finished bins after it, from how many tokens the
next process went on, and what the folder held in the end. It forks, so it is no part of the test's own process.
"""

import hashlib
import importlib
import json
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from tests.forks import die_at, forked

from scratchlm.data import assembly
from scratchlm.data.bins import check_files, is_prepared, read_manifest
from scratchlm.data.preparation import Corpus
from scratchlm.errors import UserError


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
        forked(lambda: Corpus(str(old), **asked["old"]).prepare())
        print(json.dumps({"call": "old", "end": contents(old)}))
    for number in range(1, sys.maxsize):
        shutil.rmtree(folder, ignore_errors=True)
        if fresh:
            shutil.copytree(old, folder)
        noted = folder.with_name("call")

        def dying(number: int = number, noted: Path = noted) -> None:
            die_at(number, str(folder), noted, asked["torn"])
            Corpus(str(folder), **settings).prepare(fresh)

        died, _ = forked(dying)
        if not died:
            print(json.dumps({"call": "none", "end": contents(folder)}))
            return
        taken = _taken_by_a_reader(folder)
        _, said = forked(lambda: Corpus(str(folder), **settings).prepare(fresh))
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


if __name__ == "__main__":
    main()
