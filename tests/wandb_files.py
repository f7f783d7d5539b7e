"""Offline runs of W&B, read back."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2


def no_account(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Leaves W&B without settings of this machine's user; `folder` holds no key."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += 7
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def key_of(item: Any) -> str:
    """The name of a value; the facts of a table lie one level deeper: samples/completions -> path."""
    return item.key or "/".join(item.nested_key)


def history(folder: Path) -> list[dict[str, Any]]:
    """What an offline run has logged, in order."""
    wandb.teardown()  # its own process writes the end of the file some 20 ms after the run, and this waits for it
    found = records(next(folder.glob("*.wandb")))
    return [{key_of(i): json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
