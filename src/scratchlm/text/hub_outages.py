"""What happens when the hub does not answer as it should: a visible wait, and the same question again."""

import atexit
import functools
import gc
import re
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError

ADDRESS = "hf://owner/name[/configuration][:split]"

_TIMEOUT_SECONDS = 30.0  # without a byte; for requests that name no other (chosen, not tuned)
_LONGEST_WAIT_SECONDS = 60.0  # between two tries, where the hub names no time (chosen, not tuned)
_LONGEST_ASKED_SECONDS = 300.0  # the hub counts requests in windows of five minutes, and may ask to wait for the next
_LONGEST_WAIT_IN_REQUEST = 10.0  # seconds; it cannot be interrupted from the keyboard (chosen, not tuned)
_TRIES_OF_BAD_DATA = 3  # a garbled answer may come right, a garbled file does not (chosen, not tuned)

Answer = TypeVar("Answer")

_has_answered = False  # the hub, to this process, be it with an error


class Interrupted(Exception):
    """An answer of the hub did not come, or not whole; asked again later, it may.

    Attributes:
        wait_seconds: What the hub asks to wait; 0 where it does not say.
        is_unreachable: There was no connection at all.
    """

    def __init__(self, why: str, wait_seconds: float = 0.0, is_unreachable: bool = False) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds
        self.is_unreachable = is_unreachable


@functools.cache
def set_up_clients() -> None:
    """Makes `datasets` and the hub's client fit for streaming from this process; the first call does it.

    Each request then ends in an answer or in `Interrupted`, after one more try if the one before it was answered. The
    clients' own retries, up to 23 silent seconds for each request, never begin.
    """
    import datasets
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if "torch" not in sys.modules:
        # Otherwise every stream imports torch, to inherit from its datasets; preparing must not need that.
        datasets.config.TORCH_AVAILABLE = False
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request elsewhere each time a file is opened
    datasets.disable_progress_bars()
    disable_progress_bars()
    hooks = huggingface_hub.get_session().event_hooks

    class Client(httpx2.Client):
        was_answered = True

        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                response = self._send_once(request, options)
            except Interrupted as why:
                # Reading from a state again takes several requests, and would never end where one in so many fails.
                if not self.was_answered or why.is_unreachable or why.wait_seconds > _LONGEST_WAIT_IN_REQUEST:
                    raise
                self.was_answered = False
                seconds = max(1.0, why.wait_seconds)
                _say(f"{_asker(request.url.path)}: {why}; asking again in {seconds:.3g} s")
                time.sleep(seconds)
                response = self._send_once(request, options)
            self.was_answered = True
            return response

        def _send_once(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
            try:
                response = super().send(request, **options)
            except httpx2.RequestError as error:
                why = str(error) or type(error).__name__
                raise Interrupted(why, is_unreachable=isinstance(error, httpx2.ConnectError)) from error
            global _has_answered
            _has_answered = True
            if response.status_code in (408, 429) or response.status_code >= 500:
                response.close()
                raise Interrupted(f"HTTP {response.status_code}", _asked_wait(response.headers))
            if not options.get("stream"):
                _check_length(request.headers.get("Range", ""), response)
            return response

    huggingface_hub.set_client_factory(
        lambda: Client(event_hooks=hooks, follow_redirects=True, timeout=_TIMEOUT_SECONDS)
    )
    atexit.register(_settle)


def _say(line: str) -> None:
    sys.stderr.write(f"scratchlm: {line}\n")
    sys.stderr.flush()


_asked_by: dict[str, dict[str, None]] = {}  # repository -> what messages call the sources that read it


def _asker(path: str) -> str:
    found = re.match(r"(?:/api)?/datasets/([^/]+/[^/]+)", path)
    if not found or found[1] not in _asked_by:
        return "the hub"
    return f"{', '.join(_asked_by[found[1]])}: {found[1]}"


_open_streams: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


def close_at_exit(stream: Generator[Any, None, None]) -> None:
    """Has a stream closed before the interpreter goes away, if it is still open then."""
    _open_streams.add(stream)


def _settle() -> None:
    """Lets Arrow's threads drop the files they read, which takes Python's lock, before the interpreter goes away.

    Otherwise about 1 process in 60 that ends right after reading from the hub ends with "terminate called without an
    active exception" and status 134 (measured on 2 busy cores; https://github.com/apache/arrow/issues/45214).
    """
    for stream in list(_open_streams):
        with suppress(ValueError):  # it is running, in another thread
            stream.close()
    gc.collect()
    time.sleep(0.2)


def _check_length(asked: str, response: Any) -> None:
    """Refuses a part of a file that is longer or shorter than what was asked for."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    if found and response.is_success:
        n_asked, n_sent = int(found[2]) + 1 - int(found[1]), len(response.content)
        if n_sent != n_asked:
            raise Interrupted(f"{n_sent:,} bytes came where {n_asked:,} were asked for")


def _asked_wait(headers: Any) -> float:
    # The hub counts requests in windows and says in RateLimit how many seconds the one now open has left.
    asked = re.fullmatch(r"(\d+)", headers.get("Retry-After", "")) or re.search(
        r"\bt=(\d+)", headers.get("RateLimit", "")
    )
    return min(float(asked[1]), _LONGEST_ASKED_SECONDS) if asked else 0.0


class Patience:
    """Waits between tries, 1 s, 2 s, 4 s and so on to 60 s, until they add up to the seconds given."""

    def __init__(self, key: str, repository: str, seconds: float) -> None:
        """Begins with all of it.

        Args:
            key: What messages call the source.
            repository: What it is read from.
            seconds: The sum of the waits after which an outage is for good.
        """
        self._name = f"{key}: {repository}"
        _asked_by.setdefault(repository, {})[key] = None
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begins again, since there was an answer."""
        self._left, self._next_wait, self._n_bad = self._seconds, 1.0, 0

    def wait(self, error: Exception) -> None:
        """Waits before another try, and says so on stderr.

        Raises:
            Exception: `error` itself, where another try would not help or no time is left.
        """
        why = self._why(error)
        if why is None or self._left <= 0:
            raise error
        seconds = min(max(self._next_wait, why.wait_seconds), self._left)
        self._left -= seconds
        self._next_wait = min(2 * self._next_wait, _LONGEST_WAIT_SECONDS)
        left = f"{self._left:.0f} s" if self._left < 120 else f"{self._left / 60:.0f} min"
        _say(f"{self._name}: {why}; trying again in {seconds:.3g} s ({left} left)")
        time.sleep(seconds)

    def _why(self, error: Exception) -> Interrupted | None:
        if found := interruption(error):
            return found
        if is_bad_data(error):
            self._n_bad += 1
            return Interrupted("data that cannot be read") if self._n_bad < _TRIES_OF_BAD_DATA else None
        return None


def is_bad_data(error: Exception) -> bool:
    """Whether `error` says that what came is not what a file of its kind holds."""
    import pyarrow
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, OSError):  # what Arrow and gzip raise has no number, as that of the system has
        return error.errno is None and not isinstance(error, HfHubHTTPError | FileNotFoundError)
    return isinstance(error, pyarrow.ArrowInvalid | EOFError | zlib.error)


def interruption(error: BaseException | None) -> Interrupted | None:
    """The interruption that led to `error`, if one did."""
    import httpx2

    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in chain:
        if isinstance(link, Interrupted):
            return link
    for link in chain:  # what did not pass through the client's `send`, such as the body of a download
        if isinstance(link, httpx2.RequestError | ConnectionError | TimeoutError):
            return Interrupted(str(link) or type(link).__name__)
    return None


def outlast(key: str, repository: str, seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, tried again through outages.

    A hub that cannot be connected to, and never answered this process, is not waited for: there is no network then.
    """
    patience = Patience(key, repository, seconds)
    while True:
        try:
            return ask()
        except Exception as error:
            found = interruption(error)
            if found and found.is_unreachable and not _has_answered:
                raise
            patience.wait(error)


@contextmanager
def told_in_one_line(key: str, repository: str, revision: str | None) -> Iterator[None]:
    """Turns what `datasets` and the hub's client raise into one line for the user."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        raise _explained(error, key, repository, revision) from error


def _explained(error: Exception, key: str, repository: str, revision: str | None) -> Exception:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import errors

    found = interruption(error)
    said = " ".join(str(found or error).split())[:300]
    here = f"{key}: {repository}"
    if found or isinstance(error, errors.OfflineModeIsEnabled):
        return BrokenState(
            f"{key}: cannot read {repository} from the hub ({said}). Check the network and run the same command again, "
            "which goes on from where it stopped, or use builtin: sources or local files."
        )
    if isinstance(error, errors.GatedRepoError) or isinstance(error.__cause__, errors.GatedRepoError):
        return MissingFile(f"{here} is gated on the hub. Ask for access on its page, then run `hf auth login`.")
    if isinstance(error, errors.RevisionNotFoundError):
        return BadValue(f"{here} has no revision {revision!r}. Name a branch, tag or commit of it, or none.")
    if isinstance(error, DatasetNotFoundError | errors.RepositoryNotFoundError):
        return MissingFile(
            f"{key}: no dataset {repository} on the hub. Check owner and name; if it is private, run `hf auth login`."
        )
    if is_bad_data(error):
        return BrokenState(f"{here} sent data that cannot be read ({said}). Run again.")
    if isinstance(error, DataFilesNotFoundError | EmptyDatasetError):
        return MissingFile(f"{here} has no data files that can be read ({said}). Name another one.")
    if isinstance(error, OSError) or type(error).__module__.startswith("http"):
        return BrokenState(f"{key}: cannot read {repository} ({said}). Run the same command again.")
    if isinstance(error, ValueError):  # an unknown configuration or split; the text names those there are
        return BadValue(f"{here} cannot be opened as asked: {said} Write {ADDRESS}.")
    return error
