"""However `prepare` is stopped, the same command goes on and ends with the same bytes. Real processes, real signals."""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.data.dying import contents

from scratchlm.data import assembly
from scratchlm.data.preparation import Corpus
from scratchlm.errors import BrokenState
from scratchlm.files.lock import folder_lock

CLEANING = ["unicode", "whitespace", {"length": {"min_characters": 10}}]
SMALL = {"vocab_size": 300, "context_length": 16, "cleaning": CLEANING, "val_fraction": 0.05, "shuffle_documents": 10}

# The command itself, but for how often it commits.
COMMAND = """
import sys
from scratchlm.data import assembly
assembly.COMMIT_SECONDS = float(sys.argv.pop(1))
from scratchlm.cli import main
main()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bins"


@pytest.fixture
def two(write_jsonl, story):
    """Two local sources; the first is dry early."""
    return {
        "a": write_jsonl("a", [story(i, 15, 1) for i in range(30)]),
        "b": {"uri": write_jsonl("b", [story(i, 30, 2) for i in range(60)]), "weight": 2},
    }


@pytest.fixture
def mixed(hub, write_jsonl, story):
    """Sources of every kind that travels: three from the hub, one file."""
    return {
        "wiki": "hf://Salesforce/wikitext/wikitext-103-raw-v1",
        "web": {"uri": "hf://HuggingFaceFW/fineweb/sample-10BT", "weight": 2},
        "tales": "hf://roneneldan/TinyStories",
        "file": write_jsonl("file", [story(i, 25, 3) for i in range(150)]),
    }


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `scratchlm prepare`, in a process group of its own as a shell would."""
    started = []

    def run(folder, sources, commit_seconds=0.0, fresh=False, **settings):
        settings = SMALL | {"folder": str(folder), "sources": sources} | settings
        words = [word for key, value in settings.items() for word in (f"--data.{key}", json.dumps(value).strip('"'))]
        command = [sys.executable, "-c", COMMAND, str(commit_seconds), "prepare", "--fresh", str(fresh).lower(), *words]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


def alive(pids: list[int]) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[0]) in pids and not row[1].startswith("Z")]


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def committed_tokens(folder: Path) -> int:
    try:
        return json.loads((folder / ".partial" / "commit.json").read_bytes())["writers"]["train"]["tokens"]
    except (OSError, ValueError):
        return 0


def went_on_from(said: str) -> int | None:
    found = re.search(r"going on from ([\d,]+) tokens, where prepare was stopped", said)
    return int(found[1].replace(",", "")) if found else None


def finished(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(start, mixed, folder, tmp_path):
    kill_at_random(start, mixed, folder, tmp_path, n_kills=20)


def test_ten_kills_at_random_moments_change_nothing(start, mixed, folder, tmp_path):
    kill_at_random(start, mixed, folder, tmp_path, n_kills=10)


def kill_at_random(start, mixed, folder, tmp_path, n_kills):
    settings = {"total_tokens": 60_000, "n_processes": 2}
    began = time.monotonic()
    finished(start(tmp_path / "whole", mixed, **settings))
    seconds = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    card = json.loads((tmp_path / "whole" / "manifest.json").read_text())["card"]
    assert max(source["passes"] for source in card["sources"]) > 1
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments, kills, kept = random.Random(seed), 0, []
    while kills < n_kills:
        shutil.rmtree(folder, ignore_errors=True)
        before = 0
        while True:
            process = start(folder, mixed, **settings)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, seconds))
            workers = children(process.pid)
            process.kill()
            said = process.communicate()[1]
            wait_for(lambda workers=workers: not alive(workers), 10)
            now = went_on_from(said) or 0
            assert now >= before or not now, said
            before = max(before, now)
            kept.append(now)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
            kills += 1
        assert contents(folder) == whole
    assert len({n for n in kept if n}) >= 3, kept
