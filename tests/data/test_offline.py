"""Preparing with no network: what prefetch has brought is enough, and nothing is asked of the hub."""

import json
import os
import subprocess
import sys

import pytest

# The command itself, where whoever opens a connection dies.
WITHOUT_SOCKETS = """
import os, socket
def refuse(*_):
    print("a connection was opened", flush=True)
    os._exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
from scratchlm.cli import main
main()
"""


@pytest.fixture
def run(hub, tmp_path):
    """Runs `scratchlm VERB` on three sources of the hub, without sockets where asked."""
    settings = {
        "sources": {
            "wiki": "hf://Salesforce/wikitext/wikitext-103-raw-v1",
            "web": {"uri": "hf://HuggingFaceFW/fineweb/sample-10BT", "weight": 2},
            "tales": "hf://roneneldan/TinyStories",
        },
        "vocab_size": 300,
        "context_length": 16,
        "total_tokens": 60_000,
        "n_processes": 2,
    }
    (tmp_path / "run.yaml").write_text(json.dumps({"data": settings | {"folder": "unused"}}))

    def run(verb, *words, sockets=True):
        code = "from scratchlm.cli import main; main()" if sockets else WITHOUT_SOCKETS
        command = [sys.executable, "-c", code, verb, "-c", str(tmp_path / "run.yaml"), *words]
        environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "prepare.lock"}


def test_bins_from_copies_without_a_socket_are_those_from_the_hub(run, tmp_path):
    assert run("prepare", "--data.folder", "online").returncode == 0
    brought = run("prefetch", "--folder", "copies")
    assert brought.returncode == 0, brought.stderr
    assert "B/s" in brought.stderr
    words = ["--data.folder", "offline", "--data.hub_folder", "copies", "--data.offline", "true"]
    done = run("prepare", *words, sockets=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "offline") == contents(tmp_path / "online")


def test_offline_without_copies_names_the_verb_that_brings_them(run, tmp_path):
    done = run("prepare", "--data.folder", "bins", "--data.offline", "true", sockets=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("scratchlm: error: data.sources.wiki: ")
    assert "scratchlm prefetch -c" in done.stderr
    assert not (tmp_path / "bins").exists()


def test_prefetching_nowhere_or_nothing_is_one_line(run, tmp_path):
    done = run("prefetch")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "data.hub_folder: names no folder" in done.stderr
    done = run("prefetch", "--folder", "copies", "--data.sources", json.dumps({"tales": "builtin:tiny-tales"}))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none of them is on the hub" in done.stderr
