"""What a process that computes asks of its libraries and its surroundings; nothing here changes a result."""

import ctypes
import getpass
import multiprocessing
import os
import platform
import re
import signal

from scratchlm.errors import BadValue

# How often a thread of libgomp's looks for new work before it sleeps. Its default, some hundred thousand times, is
# milliseconds of a core: where another process wants that core, threads wait for each other at every one of a step's
# thousand products. Measured on 2 cores, a 5M network: with a busy process on one of them 3.8 s a step by default and
# 0.5 s with this; 0.14 s either way where nothing else runs. Never looking (OMP_WAIT_POLICY=passive): 0.25 and 0.2.
_SPINS = "20000"

# mallopt's parameters, malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def wait_briefly() -> None:
    """Has threads that wait for others give their core away soon; before torch is imported, or it is too late."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def require_compiler_cache() -> None:
    """Refuses a TORCHINDUCTOR_CACHE_DIR that cannot be made; before Lightning is imported, which has torch make it.

    Raises:
        BadValue: With the reason.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise BadValue(
                f"TORCHINDUCTOR_CACHE_DIR={folder}: this folder of torch's compiler cannot be made "
                f"({error.strerror}). Name another, or leave it out."
            ) from error


def have_a_name() -> None:
    """Gives a user without an entry in the list of users, as containers have them, a name: torch's compiler asks."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def keep_freed_memory() -> None:
    """Has what is freed stay with this process for its next tensor; under glibc, elsewhere it does nothing.

    By default a large tensor goes back to the kernel when it is freed, and the next one's pages are zeroed anew: up to
    a fifth of a step's time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))
    libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def lost_worker(error: BaseException) -> str | None:
    """The pid of the loader's worker whose end torch tells by this error; None where it tells of something else.

    It is raised wherever the process happens to be when the worker ends, inside other libraries too.
    """
    told = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return told[1] if told else None


def end_loader_workers() -> None:
    """Ends the workers of loaders at once, without their leave.

    At a process's end Python waits without end for one that is told politely and does not hear.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for worker in workers:
        worker.kill()
        worker.join()
