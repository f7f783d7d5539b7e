"""Faults of a run's surroundings that its libraries tell by a traceback, each as the one line that says what to do."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch._C import _error_if_any_worker_fails

from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.process import end_loader_workers, lost_worker

# What torch says of an id that the embedding has no row for, on a CPU and, far from where it happened, on CUDA.
_BEYOND_VOCABULARY = ("index out of range in self", "device-side assert triggered")

_SECONDS_TO_END = 0.5  # from a worker's line breaking off to its end; chosen, not tuned


@contextmanager
def fault_advice(config: Namespace) -> Iterator[None]:
    """Tells of a loader's worker that was killed, of ids that the vocabulary does not have, of a metric that is none.

    Args:
        config: The configuration of the verb.

    Raises:
        BrokenState: A worker has ended, or the bins hold such ids.
        BadValue: A callback of the user's waits for a metric that there is not.
    """
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:
        raise BadValue(f"trainer: {_first_line(error)}") from error
    except (RuntimeError, IndexError, OSError, EOFError) as error:
        text = str(error)
        n_workers = config.data.num_workers
        if n_workers and (lost := _loss_of_a_worker(error)):
            end_loader_workers()
            raise BrokenState(
                f"data.num_workers={n_workers}: the worker process {lost_worker(lost)} has ended ({_cause(lost)}). "
                "Where memory ran out, give fewer workers, or 0. The checkpoints are as they were: go on by "
                "--ckpt_path last."
            ) from error
        if any(words in text for words in _BEYOND_VOCABULARY):
            raise BrokenState(
                f"data.folder={config.data.folder}: a batch holds ids that the vocabulary does not have, so the bins "
                f"are not as they were written. scratchlm corpus check --folder {config.data.folder} finds where, "
                "data.verify=true looks before each run; scratchlm prepare --fresh true makes them anew."
            ) from error
        if "conditioned on metric" in text:  # Lightning's EarlyStopping
            raise BadValue(f"trainer.callbacks: {_first_line(error)}. Name val/loss, for instance.") from error
        raise


def _loss_of_a_worker(error: BaseException) -> BaseException | None:
    """What torch says of a worker's end: the error itself, or what stands behind a line that broke off."""
    deadline = time.monotonic() + (_SECONDS_TO_END if isinstance(error, OSError | EOFError) else 0)
    while not lost_worker(error):
        try:
            _error_if_any_worker_fails()
        except RuntimeError as told:
            return told
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)
    return error


def _cause(error: BaseException) -> str:
    """What torch says of a worker's end, without the pid."""
    return re.sub(r".*?\(pid(\(s\))? [\d, ]+\) ", "", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
