"""What a test does to a process that is to become the command: a full disk, fewer rights, a clock that jumps."""

import ctypes
import json
import os
import resource
import shutil
import sys  # noqa: F401  # for the wrecks that tests write
import time
from collections.abc import Callable
from pathlib import Path

from tests.forks import fork

_PR_SET_KEEPCAPS = 8
_NOBODY = 54_321
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def at_step(step: int, wreck: Callable[[], object]) -> None:
    """Calls `wreck` before the first batch that follows a step."""
    from lightning.pytorch import Trainer

    from scratchlm.training.throughput import Throughput

    original = Throughput.on_train_batch_end
    done = False

    def hook(self: Throughput, trainer: Trainer, *arguments: object, **named: object) -> None:
        nonlocal done
        original(self, trainer, *arguments, **named)
        if trainer.global_step == step and not done:
            done = True
            wreck()

    Throughput.on_train_batch_end = hook


def each(wrecks: dict[str, str], run: Path) -> None:
    """Lets a child of this process go on with the run for each wreck, and ends this one when all have ended.

    Beside the run folder stays a copy of it for each, `<run>-<name>`, as the child has left it, and ended.json with its
    status and what it said.

    Args:
        wrecks: Python for each child, with the functions of this module, `run` and `bins` at hand.
        run: The run folder.
    """
    beside = [run, run.parent / "bins"]
    for path in beside:
        shutil.copytree(path, path.with_name(f"{path.name}-kept"))
    ends = {}
    for name, code in wrecks.items():
        ended = fork()
        if ended is None:
            exec(code, globals() | {"run": run, "bins": run.parent / "bins"})
            return
        ends[name] = ended
        left = run.with_name(f"{run.name}-{name}")
        if run.exists():
            shutil.copytree(run, left, symlinks=True)
        for path in beside:
            _restore(path, path.with_name(f"{path.name}-kept"))
    (run.parent / "ended.json").write_text(json.dumps(ends))
    os._exit(0)


def _restore(folder: Path, kept: Path) -> None:
    """Gives files their bytes back, in place where they are there: this process may have them open."""
    folder.mkdir(exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    for path in sorted(folder.rglob("*"), reverse=True):
        whole = kept / path.relative_to(folder)
        if path.is_symlink() or not whole.exists():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for whole in kept.rglob("*"):
        path = folder / whole.relative_to(kept)
        if whole.is_dir():
            path.mkdir(exist_ok=True)
        else:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.truncate(whole.stat().st_size)
                file.write(whole.read_bytes())


def full_disk(n_bytes: int) -> None:
    """Files grow no further than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def no_rights_of_root() -> None:
    """Permissions of files bind root too; others have no such rights anyway."""
    if not os.geteuid():
        _keep_capabilities(lambda given: given & ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH))


def nobody() -> None:
    """From root to a user that no list of users has; it may still read all, as Python may lie in root's home."""
    ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    _keep_capabilities(lambda _: 1 << _CAP_DAC_READ_SEARCH)


def _keep_capabilities(kept: Callable[[int], int]) -> None:
    """Of this process itself: taking one from the bounding set shows at the next exec only."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, each in two halves
    assert not libc.capget(header, data), os.strerror(ctypes.get_errno())
    data[0] = data[1] = kept(data[1])
    assert not libc.capset(header, data), os.strerror(ctypes.get_errno())


def jump(seconds: float) -> None:
    """The clock on the wall jumps."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def flip_what_is_written() -> None:
    """One bit of each file is another on the disk than it was when it was handed to the system."""
    fsync = os.fsync

    def flip(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size > 10_000:  # a checkpoint
            path = f"/proc/self/fd/{descriptor}"
            with open(path, "r+b") as file:
                file.seek(size // 2)
                byte = file.read(1)
                file.seek(size // 2)
                file.write(bytes([byte[0] ^ 1]))
        fsync(descriptor)

    os.fsync = flip
